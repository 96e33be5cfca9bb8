"""Records and verdicts as JSON, tables and pages."""

from ft2.report.document import SCHEMA, as_document, write_document
from ft2.report.result import CampaignResult, reweighted_rate
from ft2.report.table import SPACE, markdown_page, notes, table

__all__ = [
    "SCHEMA",
    "SPACE",
    "CampaignResult",
    "as_document",
    "markdown_page",
    "notes",
    "reweighted_rate",
    "table",
    "write_document",
]
