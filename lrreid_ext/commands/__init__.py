"""What ``lrreid`` can do: a module for each command, found by being here.

Each has a docstring whose first line says what it does, and ``main(argv) -> exit status``: 0, or 2
with one clear line on the standard error for what a user can put right. ``tools/`` holds thin
scripts of the same commands, for a checkout.
"""
