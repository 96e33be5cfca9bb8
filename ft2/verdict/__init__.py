"""From counts to a rate, an interval and a verdict. Pure arithmetic: no torch, no pytest."""

from ft2.verdict.allocation import POOL, Allocation, AllocationRule, strata_by_top_bit
from ft2.verdict.betting import mean_interval
from ft2.verdict.cells import Cell, Strata
from ft2.verdict.early import decide_early
from ft2.verdict.estimate import Estimate, UniformSample
from ft2.verdict.evidence import always_valid_interval, log_evidence_above, log_evidence_below
from ft2.verdict.gate import Budget, Counts, Verdict, decide, is_lost_already
from ft2.verdict.interval import interval, lower_bound, upper_bound
from ft2.verdict.paired import Pairs, ReductionVerdict, compare, decide_reduction
from ft2.verdict.planning import least_trials, never_passes
from ft2.verdict.prompts import interval_for_new_prompts
from ft2.verdict.repetition import (
    chance_of_another_early_verdict,
    chance_of_another_stratified_verdict,
    chance_of_another_verdict,
    chance_of_passing,
)
from ft2.verdict.simulated import sequential_campaigns, stratified_campaigns
from ft2.verdict.stopping import CurtailedRule, SequentialRule, StoppingRule, stopping_rule
from ft2.verdict.stratified import Stratum, decide_stratified, interval_over_strata
from ft2.verdict.two_stage import LaterStratum, TwoStageSample
from ft2.verdict.weighted import weighted_interval, weighted_rate

__all__ = [
    "POOL",
    "Allocation",
    "AllocationRule",
    "Budget",
    "Cell",
    "Counts",
    "CurtailedRule",
    "Estimate",
    "LaterStratum",
    "Pairs",
    "ReductionVerdict",
    "SequentialRule",
    "StoppingRule",
    "Strata",
    "Stratum",
    "TwoStageSample",
    "UniformSample",
    "Verdict",
    "always_valid_interval",
    "chance_of_another_early_verdict",
    "chance_of_another_stratified_verdict",
    "chance_of_another_verdict",
    "chance_of_passing",
    "compare",
    "decide",
    "decide_early",
    "decide_reduction",
    "decide_stratified",
    "interval",
    "interval_for_new_prompts",
    "interval_over_strata",
    "is_lost_already",
    "least_trials",
    "log_evidence_above",
    "log_evidence_below",
    "lower_bound",
    "mean_interval",
    "never_passes",
    "sequential_campaigns",
    "stopping_rule",
    "strata_by_top_bit",
    "stratified_campaigns",
    "upper_bound",
    "weighted_interval",
    "weighted_rate",
]
