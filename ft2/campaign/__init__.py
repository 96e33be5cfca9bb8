"""Golden runs, trials and outcomes. Knows models, faults and protections; knows no pytest."""

from ft2.campaign.ahead import Ahead, Batched, GoldenCalls
from ft2.campaign.campaign import Campaign
from ft2.campaign.exponents import ExponentReader
from ft2.campaign.golden import Golden, Macs, Recorder
from ft2.campaign.outcome import Outcome, is_harness_error, is_sticky, outcome_of
from ft2.campaign.randomness import preserved_randomness, seed_everything
from ft2.campaign.replies import Replies
from ft2.campaign.run import Run, RunSpec
from ft2.campaign.watched import Watched

__all__ = [
    "Ahead",
    "Batched",
    "Campaign",
    "ExponentReader",
    "Golden",
    "GoldenCalls",
    "Macs",
    "Outcome",
    "Recorder",
    "Replies",
    "Run",
    "RunSpec",
    "Watched",
    "is_harness_error",
    "is_sticky",
    "outcome_of",
    "preserved_randomness",
    "seed_everything",
]
