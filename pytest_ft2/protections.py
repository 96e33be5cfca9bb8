"""With which profile and which correction a gate's protection is put on its model."""

from __future__ import annotations

from typing import Any

from pytest_ft2.options import CORRECTED_PROTECTIONS, PROFILED_PROTECTIONS, Settings

__all__ = ["protection_options"]


def protection_options(protection: str, settings: Settings) -> dict[str, Any]:
    """Return what :func:`ft2.protect` is told beside the policy's name: plain values.

    Parameters
    ----------
    protection:
        The policy's name.
    settings:
        What the command line and the ini file ask for.

    Raises
    ------
    ValueError
        If the policy needs a profile and has none, or another policy's, or has a correction of its
        own and is given one; the message is one sentence.
    """
    options: dict[str, Any] = {"bounds": None, "correction": None}
    if protection in PROFILED_PROTECTIONS:
        # Reading it now, not in the first trial, imports torch: trials are going to run.
        from ft2.protection import Profile

        if settings.bounds is None:
            raise ValueError(
                f"protection {protection} needs profiled bounds: write them with "
                f"ft2.profile(model, prompts, policy={protection!r}).save(FILE), and pass "
                "--ft2-bounds=FILE"
            )
        profile = Profile.load(settings.bounds)
        if profile.policy != protection:
            raise ValueError(
                f"--ft2-bounds={settings.bounds.name} holds bounds for {profile.policy}, not for "
                f"the protection {protection}"
            )
        options["bounds"] = str(settings.bounds)
    if settings.correction is not None and protection in CORRECTED_PROTECTIONS:
        options["correction"] = settings.correction
    elif settings.correction is not None and protection != "none":
        raise ValueError(
            f"--ft2-correction is for {' and '.join(CORRECTED_PROTECTIONS)}: {protection} has a "
            "correction of its own"
        )
    return options
