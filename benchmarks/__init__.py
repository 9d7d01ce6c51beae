"""How long explaining takes, how much memory, and against what: programs anyone can repeat.

See README.md beside this file.
"""
