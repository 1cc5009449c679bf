"""Galleries: images embedded once, stored, added to, removed from and searched."""

from lrreid_ext.search.gallery import Answer, Change, Gallery, Match
from lrreid_ext.search.images import Entry

__all__ = ["Answer", "Change", "Entry", "Gallery", "Match"]
