"""A generator of models, and the judge of what the library says of them: right or refused."""
