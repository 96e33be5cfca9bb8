"""Records and verdicts as JSON, tables and pages."""

from ft2.report.breakdown import breakdown, layer_kind
from ft2.report.document import SCHEMA, as_document, write_document
from ft2.report.measures import MEASURES, rates_by_measure, reweighted_rate
from ft2.report.result import CampaignResult
from ft2.report.table import SPACE, markdown_page, notes, table

__all__ = [
    "MEASURES",
    "SCHEMA",
    "SPACE",
    "CampaignResult",
    "as_document",
    "breakdown",
    "layer_kind",
    "markdown_page",
    "notes",
    "rates_by_measure",
    "reweighted_rate",
    "table",
    "write_document",
]
