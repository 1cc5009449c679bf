"""One self-contained HTML page about trained models."""

from lrreid_ext.report.context import Context
from lrreid_ext.report.page import render
from lrreid_ext.report.sections import build, sections

__all__ = ["Context", "build", "render", "sections"]
