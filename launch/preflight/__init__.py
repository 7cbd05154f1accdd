"""Preflight: before a run begins, its ranks find out what would make it hang or go wrong later.

    joined      every rank comes to rank 0's store      waited for JOIN_S, and said from SAY_S on
    reported    what each rank is, has and sees         REPORT_S
    measured    each multiplies matrices, all sum a     MEASURE_S
                tensor, each sends to two others
    judged      by rank 0; all ranks go on, or none

    survey.py       the order of it all
    rendezvous.py   how ranks come to rank 0's store    seat.py      what rank 0 tells the others
    report.py       what a rank says of itself          faults.py    what it finds wrong by itself
    folder.py       whether all see one run folder      verdict.py   what rank 0 makes of it all
    rates.py        how fast ranks compute and send     measure.py   that, without hanging for ever
    table.py        `hypnos doctor --ranks`

For a launcher: a preflight that fails because of some hosts, at most half of them, ends every rank
with status 69 (UNFIT) and leaves their names in the run's folder, which has no such file
after a preflight that passed:

    preflight.json    {"bad_hosts": ["n7"], "problems": ["rank 3 on n7: ...; fix ..."]}

Hosts have the names by which Slurm knows them. With any other fault, the user's to mend, the status
is 2, as of any wrong input, and "bad_hosts" is empty.
"""

from launch.preflight.survey import check
from launch.preflight.verdict import PreflightError

__all__ = ["PreflightError", "check"]
