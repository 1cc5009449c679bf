"""FFSR + RIFE: see README.md. Its parts are of general use and live in ``lrreid_ext.modeling``."""
