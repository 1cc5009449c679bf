"""Galleries: images embedded once, stored, added to, removed from and searched."""

from lrreid_ext.search.gallery import Answer, Gallery, Match
from lrreid_ext.search.images import Change
from lrreid_ext.search.store import Entry

__all__ = ["Answer", "Change", "Entry", "Gallery", "Match"]
