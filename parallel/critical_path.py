"""How long a schedule takes for given durations, fast enough to compare thousands of layouts.

`parallel.simulator` executes a schedule, checks every rule, and knows who waits when. Here a
schedule is a topologically sorted list of its actions, so that one pass over it gives the time at
which the last one ends. Messages take no time, and nobody waits for a batch of messages: the
simulator's "buffered" time.
"""

from __future__ import annotations

from collections.abc import Callable

from parallel.schedule import Action, Schedule


class CriticalPath:
    """A schedule with its dependencies resolved."""

    def __init__(self, schedule: Schedule) -> None:
        # by stage: its actions in order, and what each needs from other stages
        self.actions: list[list[Action]] = []
        needs: list[dict[Action, list[tuple[int, Action]]]] = []
        for s, steps in enumerate(schedule.steps):
            self.actions.append([step.action for step in steps if step.action])
            taken: dict[Action, list[tuple[int, Action]]] = {a: [] for a in self.actions[-1]}
            for message in (m for step in steps for m in step.messages if m.target == s):
                backward, m = message.backward, message.microbatch
                taken[Action(backward, m, message.unit)].append(
                    (message.source, Action(backward, m, message.made_by))
                )
            needs.append(taken)
        self._order = _sorted(self.actions, needs)

    def seconds(self, duration: Callable[[Action, int], float]) -> float:
        """When the last stage is done. duration(action, stage) is in seconds."""
        ends: list[float] = []  # end times of the actions, in order
        free = [0.0] * len(self.actions)  # when each stage becomes free
        for s, action, needs in self._order:
            begin = max([free[s], *(ends[n] for n in needs)])
            free[s] = begin + duration(action, s)
            ends.append(free[s])
        return max(free)


def _sorted(
    actions: list[list[Action]], needs: list[dict[Action, list[tuple[int, Action]]]]
) -> list[tuple[int, Action, list[int]]]:
    """Topological order: (stage, action, indices of the actions it waits for)."""
    order: list[tuple[int, Action, list[int]]] = []
    places: dict[tuple[int, Action], int] = {}
    at = [0] * len(actions)
    while True:
        before = len(order)
        for s, mine in enumerate(actions):
            while at[s] < len(mine) and all(need in places for need in needs[s][mine[at[s]]]):
                action = mine[at[s]]
                places[s, action] = len(order)
                order.append((s, action, [places[need] for need in needs[s][action]]))
                at[s] += 1
        if len(order) == before:
            assert at == [len(mine) for mine in actions], "the schedule deadlocks"
            return order
