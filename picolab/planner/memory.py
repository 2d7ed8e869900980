"""Bytes of a candidate, by category, on the rank that needs most.

parameters, gradients, optimizer   by the practice's dtypes and the stage of ZeRO; experts are
              sharded over the replicas that hold the same ones. With the parameters, the working
              copies that products in a short format make of them
activations   what layers keep, as often as micro-batches are in flight, and while it is
              recomputed one layer as a whole
loss          the last norm, the head and the logits of one micro-batch
gathered      ZeRO-3: the unit that is computed with, and the next one on its way
"""

from picolab import costs
from picolab.planner.parts import Candidate, Part, Parts, once
from picolab.specs.schedule_name import ScheduleName

CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "loss", "gathered")


class Memory(Parts):
    def memory(self, candidate: Candidate) -> dict[str, float]:
        """Bytes by category on the rank that needs most."""
        return max(self._held(candidate, distinct=True), key=lambda held: sum(held.values()))

    def memory_by_place(self, candidate: Candidate) -> list[dict[str, float]]:
        """The same for each place on pp."""
        return self._held(candidate, distinct=False)

    def _held(self, candidate: Candidate, distinct: bool) -> list[dict[str, float]]:
        layout = candidate.layout
        shards = layout.size(layout.shard_axis) if layout.zero else 1
        return [
            {
                **self._states(part, layout.tp, layout.ep, layout.zero, shards),
                "activations": kept,
                "loss": loss,
            }
            for part, kept, loss in self._working(candidate, distinct)
        ]

    def total_bytes(self, candidate: Candidate) -> float:
        """What `memory` comes to, without its categories."""
        layout = candidate.layout
        shards = layout.size(layout.shard_axis) if layout.zero else 1
        return max(
            self._states_total(part, layout.tp, layout.ep, layout.zero, shards) + kept + loss
            for part, kept, loss in self._working(candidate, True)
        )

    def _working(self, candidate: Candidate, distinct: bool) -> list[tuple[Part, float, float]]:
        """What each place on pp keeps of micro-batches, and for the loss."""
        layout, micro_batch, recompute = candidate
        return self._working_of(
            (layout.pp, layout.schedule, layout.stages), layout.tp, layout.sp, layout.cp,
            micro_batch, self.micro_batches(candidate), recompute, distinct,
        )  # fmt: skip

    @once
    def _working_of(self, where, tp, sp, cp, micro_batch, m, recompute, distinct):
        pp, schedule, _ = where
        found, seen = [], set()
        for place, part in enumerate(self._places(*where)):
            # The earlier of equal ones waits for its backward longest.
            if distinct and part in seen:
                continue
            seen.add(part)
            activations, loss = self._activations(part, tp, sp, cp, micro_batch, recompute)
            kept = activations
            if pp > 1:
                kept *= self._waiting(schedule, pp, m, place)
            if recompute == "full":  # one layer is there as a whole while it is recomputed
                kept += self._largest_layer(part, tp, sp, cp, micro_batch)
            found.append((part, kept, loss))
        return found

    @once
    def _waiting(self, schedule: str, pp: int, m: int, place: int) -> float:
        """Micro-batches that a rank holds at most, counted as all of the rank's layers."""
        stages = ScheduleName.parse(schedule).stages_a_rank
        return costs.in_flight(schedule, pp, m, place) / stages

    @once
    def _activations(self, part, tp, sp, cp, micro_batch, recompute) -> tuple[float, float]:
        layers = sum(
            count * self._kept(layer, tp, sp, cp, micro_batch, recompute)
            for count, layer in self._kinds(part)
            if count
        )
        return layers, self._loss(tp, sp, cp, micro_batch) if part.last else 0.0

    def least_layer(self, tp, sp, cp, micro_batch, recompute) -> float:
        """What a layer keeps, of the kind that keeps less."""
        return min(
            self._activations(kind, tp, sp, cp, micro_batch, recompute)[0]
            for kind in self._kinds_of(self.whole())
        )

    @once
    def _largest_layer(self, part, tp, sp, cp, micro_batch) -> float:
        return max(
            (
                self._activations(kind, tp, sp, cp, micro_batch, "none")[0]
                for kind in self._kinds_of(part)
            ),
            default=0.0,
        )

    @once
    def _states_total(self, part, tp, ep, zero, shards) -> float:
        return sum(self._states(part, tp, ep, zero, shards).values())

    @once
    def _states(self, part, tp, ep, zero, shards) -> dict[str, float]:
        held, recipe = self.parameters(part, tp, ep), self.practice.recipe
        dense = costs.state_bytes(held.dense, **recipe, zero=zero, dp=shards)
        experts = costs.state_bytes(held.experts, **recipe, zero=zero, dp=max(1, shards // ep))
        gradients = dense.gradients + experts.gradients
        if self.practice.whole_gradients:
            gradients = held.total * recipe["grad_bytes"]
        gathered = 0.0
        if zero == 3:  # the one that is computed with, and the next one on its way
            largest = max(
                self.parameters(Part(n == 0, n == 1, n == 2, n == 3), tp, ep).total
                for n in range(4)
                if part[n]
            )
            gathered = 2.0 * largest * recipe["param_bytes"]
        copies = 0.0
        if self.practice.copies and zero < 3:  # (not of the table that rows are looked up in)
            copied = self.parameters(part._replace(first=False), tp, ep).dense
            copies = self.practice.copies * copied
        return {
            "parameters": dense.parameters + experts.parameters + copies,
            "gradients": gradients,
            "optimizer": dense.optimizer + experts.optimizer,
            "gathered": gathered,
        }
