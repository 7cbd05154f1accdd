"""Preflight: before a run starts, its ranks check for what would make it hang or fail later.

    join        every rank connects to rank 0's store   up to JOIN_S, with messages from SAY_S on
    report      what each rank is, has and sees         REPORT_S
    measure     each multiplies matrices, all reduce    MEASURE_S
                a tensor, each sends to two others
    verdict     by rank 0; all ranks go on, or none

    survey.py       the order of the phases
    rendezvous.py   how ranks connect to the store      seat.py      what rank 0 tells the others
    report.py       a rank's report                     faults.py    what it finds wrong by itself
    folder.py       whether all see the same folder     verdict.py   rank 0's verdict
    rates.py        how fast ranks compute and send     measure.py   measures without hanging
    table.py        `hypnos doctor --ranks`

For launchers: a preflight that fails because of some hosts, at most half of them, ends every rank
with status 69 (UNFIT) and writes their names to the run's folder (after a preflight that passes,
there is no such file):

    preflight.json    {"bad_hosts": ["n7"], "problems": ["rank 3 on n7: ...; fix ..."]}

Hosts have their Slurm names. For any other fault, which the user must fix, the status is 2, as for
any wrong input, and "bad_hosts" is empty.
"""

from launch.preflight.survey import check
from launch.preflight.verdict import PreflightError

__all__ = ["PreflightError", "check"]
