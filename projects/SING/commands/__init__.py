"""Commands that this project adds to `lrreid`."""
