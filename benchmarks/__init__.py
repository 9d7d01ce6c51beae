"""Programs that measure the time and memory of explanations, and compare them with other methods.

See README.md in this folder.
"""
