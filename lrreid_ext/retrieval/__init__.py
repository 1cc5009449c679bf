"""Galleries that grow and are searched: built once, embedded by one model, kept on the disk."""

from lrreid_ext.retrieval.entries import Entry
from lrreid_ext.retrieval.gallery import Answer, Change, Gallery, Match
from lrreid_ext.retrieval.store import Store, create_store, open_store

__all__ = [
    "Answer",
    "Change",
    "Entry",
    "Gallery",
    "Match",
    "Store",
    "create_store",
    "open_store",
]
