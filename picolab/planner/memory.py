"""Bytes of a candidate, by category, on the rank that needs most.

parameters, gradients, optimizer   by the practice's dtypes and the stage of ZeRO; experts are
              sharded over the replicas that hold the same ones. With the parameters, the working
              copies that products in a short format make of them
activations   what layers keep, as often as micro-batches are in flight, and while it is
              recomputed one layer as a whole
loss          the last norm, the head and the logits of one micro-batch
gathered      ZeRO-3: the unit that is computed with, and the next one on its way
working       of an eager practice: what else there is when most is alive. In the loss, the
              gradients of logits; in a block's backward, those of its widest tensors, and what it
              recomputes; at the end of the step, the buffers in which ZeRO's gradients travel; and
              what a pipeline has sent

What a place on pp does with its layers is a mix: the first of a kind recompute, the next ones
selectively, the last ones keep. In this order the peak is least, since what is large only while it
is worked on comes while little is kept.
"""

from typing import Literal

from picolab import costs
from picolab.planner.parts import Candidate, Mix, Part, Parts, once
from picolab.specs import Layout
from picolab.specs.precision import PRECISIONS
from picolab.specs.schedule_name import ScheduleName
from picolab.specs.train_config import TRAINED_EXTENSIONS

CATEGORIES = (
    "parameters", "gradients", "optimizer", "activations", "loss", "gathered", "working",
)  # fmt: skip
TOKEN_BYTES = 3 * 8
"""A token, its label, and the label side by side with the others'."""
SCALARS_BYTES = 256
"""Of a layer, and of what is outside them: steps that were counted, losses, norms."""


class Memory(Parts):
    def memory(self, candidate: Candidate) -> dict[str, float]:
        """Bytes by category on the rank that needs most."""
        return max(self._held(candidate, distinct=True), key=lambda held: sum(held.values()))

    def memory_by_place(self, candidate: Candidate) -> list[dict[str, float]]:
        """The same for each place on pp."""
        return self._held(candidate, distinct=False)

    def total_bytes(self, candidate: Candidate) -> float:
        """What `memory` comes to, without its categories."""
        layout = candidate.layout
        where, shards = _where(layout), _shards(layout)
        m, seen, most = self.micro_batches(candidate), set(), 0.0
        for place, held in enumerate(self.mixes(where, candidate.recompute)):
            if held not in seen:  # the earlier of equal ones waits for its backward longest
                seen.add(held)
                states = self._states_total(held[0], layout.tp, layout.ep, layout.zero, shards)
                working = self._working(layout, candidate.micro_batch, m, place, *held)
                most = max(most, states + sum(working))
        return most

    def place_bytes(self, candidate: Candidate, place: int, mix: Mix) -> float:
        """Bytes of one place on pp, if it did this with its layers."""
        layout, part = candidate.layout, self._places(*_where(candidate.layout))[place]
        states = self._states_total(part, layout.tp, layout.ep, layout.zero, _shards(layout))
        m = self.micro_batches(candidate)
        return states + sum(self._working(layout, candidate.micro_batch, m, place, part, mix))

    def modes(self, layout: Layout) -> tuple[str, ...]:
        """What a layer may recompute there. Our own scheduler counts on a backward in one piece,
        and recomputes selectively where no collective changes a kept result in place."""
        if not self.eager:
            return costs.RECOMPUTE
        name = ScheduleName.parse(layout.schedule)
        if layout.pp > 1 and (name.splits_backward or name.stages_a_rank > 1):
            return costs.RECOMPUTE[:1]
        alone = layout.tp == layout.cp == layout.ep == 1 and layout.zero < 3
        return costs.RECOMPUTE if alone else ("none", "full")

    def _held(self, candidate: Candidate, distinct: bool) -> list[dict[str, float]]:
        layout, m, found, seen = candidate.layout, self.micro_batches(candidate), [], set()
        where, shards = _where(layout), _shards(layout)
        for place, held in enumerate(self.mixes(where, candidate.recompute)):
            if distinct and held in seen:
                continue
            seen.add(held)
            states = self._states(held[0], layout.tp, layout.ep, layout.zero, shards)
            working = self._working(layout, candidate.micro_batch, m, place, *held)
            names = ("activations", "loss", "working")
            found.append({**states, **dict(zip(names, working, strict=True))})
        return found

    def _working(self, layout, micro_batch, m, place, part, mix) -> tuple[float, float, float]:
        """Activations, what is kept of the loss, and what is alive beside them for a moment."""
        where, tp, sp, cp = _where(layout), layout.tp, layout.sp, layout.cp
        waiting = self._waiting(layout.schedule, layout.pp, m, place) if layout.pp > 1 else 1
        if not self.eager:
            kept, loss = self._activations(part, tp, sp, cp, micro_batch, mix)
            again = mix.dense.full + mix.sparse.full  # one is there as a whole meanwhile
            whole = self._largest_layer(part, tp, sp, cp, micro_batch) if again else 0.0
            return kept * waiting + whole, loss, 0.0
        kept, ends, moment = self._moment(where, tp, sp, cp, micro_batch, place, part, mix)
        travels = self._travels(part, tp, layout.ep, layout.zero, _shards(layout))
        gathered = self._states(part, tp, layout.ep, layout.zero, _shards(layout))["gathered"]
        most = max(moment, travels - waiting * (kept + ends) - gathered)
        if layout.zero:
            leaves = self._leaves(layout, micro_batch, part, mix)
            most = max(most, leaves - waiting * (kept + ends))
        most += self._sent(where, sp, tp, cp, micro_batch, m, place)
        most += m * micro_batch * self.request.seq * TOKEN_BYTES + self._small(part, cp)
        return waiting * kept, waiting * ends, most

    @once
    def _waiting(self, schedule: str, pp: int, m: int, place: int) -> float:
        """Micro-batches that a rank holds at most, counted as all of the rank's layers."""
        stages = ScheduleName.parse(schedule).stages_a_rank
        return costs.in_flight(schedule, pp, m, place) / stages

    @once
    def _activations(self, part, tp, sp, cp, micro_batch, mix) -> tuple[float, float]:
        layers = sum(
            count * self._left(layer, tp, sp, cp, micro_batch, recompute)
            for (_, layer), counts in zip(self._kinds(part), mix)
            for recompute, count in zip(costs.RECOMPUTE, counts)
            if count
        )
        return layers, self._loss(tp, sp, cp, micro_batch) if part.last else 0.0

    def least_layer(self, tp, sp, cp, micro_batch, recompute) -> float:
        """What a layer keeps, of the kind that keeps less."""
        return min(
            self._left(layer, tp, sp, cp, micro_batch, recompute)
            for count, layer in self._kinds(self.whole())
            if count
        )

    @once
    def _largest_layer(self, part, tp, sp, cp, micro_batch) -> float:
        return max(
            (
                self._left(layer, tp, sp, cp, micro_batch, "none")
                for count, layer in self._kinds(part)
                if count
            ),
            default=0.0,
        )

    # -- of an eager practice

    @property
    def eager(self) -> bool:
        return self.practice.eager and set(self.config.extensions) <= set(TRAINED_EXTENSIONS)

    @property
    def _products(self) -> Literal["native", "rounded"]:
        return "native" if self.practice.copies == 2 else "rounded"

    @once
    def _left(self, layer, tp, sp, cp, micro_batch, recompute) -> float:
        """Bytes that a layer keeps of a micro-batch, as the practice writes it."""
        if not self.eager:
            return self._kept(layer, tp, sp, cp, micro_batch, recompute)
        found = costs.saved_bytes(
            self.config, layer, tp=tp, sp=sp, cp=cp, recompute=recompute,
            products=self._products, **self._of(micro_batch),
        )  # fmt: skip
        return sum(found.values())

    @once
    def _moment(self, where, tp, sp, cp, micro_batch, place, part, mix) -> tuple[float, ...]:
        """What a micro-batch keeps at a place, in layers and for the loss; and what is alive beside
        that at the worst moment of its backward."""
        ends = costs.saved_ends(self.config, tp=tp, sp=sp, cp=cp, **self._of(micro_batch))
        boundary = self._boundary(sp, tp, cp, micro_batch)
        embedded = ends.pop("embed", 0)
        kept = embedded if part.first else boundary
        lost = sum(ends.values()) if part.last else 0.0
        block = 0.0
        for (_, layer), counts in zip(self._kinds(part), mix):
            whole = self._left(layer, tp, sp, cp, micro_batch, "none")
            work = costs.block_work_bytes(
                self.config, layer, tp=tp, sp=sp, cp=cp, products=self._products,
                **self._of(micro_batch),
            )  # fmt: skip
            for recompute, count in reversed(list(zip(costs.RECOMPUTE, counts))):
                if count:
                    each = self._left(layer, tp, sp, cp, micro_batch, recompute)
                    block = max(block, kept + (count - 1) * each + whole + work)
                    kept += count * each
        if not part.last and embedded:  # what the last layer gives is sent, and not kept
            kept -= boundary
        moment = block - kept - lost
        if part.last:
            loss = costs.loss_work_bytes(
                self.config, tp=tp, sp=sp, cp=cp, products=self._products, **self._of(micro_batch)
            )
            moment = max(moment, loss)
        return kept, lost, moment

    def _small(self, part: Part, cp: int) -> float:
        """Tables of positions, and AdamW's counts of steps."""
        tables = 2 * self.request.seq * self.config.head_dim * 4 if cp == 1 else 0
        return tables + SCALARS_BYTES * (1 + part.dense + part.sparse)

    @once
    def _travels(self, part, tp, ep, zero, shards) -> float:
        """At the end of backward: gradients packed for the other ranks, and this rank's rows. From
        stage 2 on whole ones are gone by then, but for a bucket."""
        if not zero:
            return 0.0
        gradients = self.parameters(part, tp, ep).total * self.practice.recipe["grad_bytes"]
        gone = max(0.0, gradients - costs.DEFAULT_BUCKET_BYTES) if zero > 1 else 0.0
        return gradients + gradients / shards - gone

    @once
    def _leaves(self, layout, micro_batch, part, mix) -> float:
        """When ZeRO's first bucket is full, in the midst of the last backward: what is still kept,
        the bucket packed, and this rank's rows of it. Of stage 1, whose gradients stay, also when
        the next block works, beside these rows. (Later ones leave when less is kept.)"""
        full, at, name = self._first_bucket(part, layout.tp, layout.ep)
        if name is None:
            return 0.0
        sizes = dict(tp=layout.tp, sp=layout.sp, cp=layout.cp)
        options = dict(**sizes, products=self._products, **self._of(micro_batch))
        blocks = [
            (layer, recompute)
            for (_, layer), counts in zip(self._kinds(part), mix)
            for recompute, count in reversed(list(zip(costs.RECOMPUTE, counts)))
            for _ in range(count)
        ]
        boundary = self._boundary(layout.sp, layout.tp, layout.cp, micro_batch)
        rows = full / _shards(layout)

        def there(block: int) -> float:  # when its backward begins
            before = [self._left(of, *sizes.values(), micro_batch, how) for of, how in blocks]
            whole = self._left(blocks[block][0], *sizes.values(), micro_batch, "none")
            return boundary + sum(before[:block]) + whole

        saved = costs.saved_bytes(self.config, blocks[at][0], **options)
        most = there(at) - _gone(saved, name) + boundary + full + rows
        works = at if name.endswith("down") else at - 1
        if layout.zero == 1 and works >= 0:
            work = costs.block_work_bytes(self.config, blocks[works][0], **options)
            most = max(most, there(works) + work + rows)
        return most

    @once
    def _first_bucket(self, part, tp, ep) -> tuple[float, int, str | None]:
        """Its bytes, and which block's parameter fills it; None: it is filled at the end."""
        found = costs.local_parameters(self.config, Layout(tp=tp), 0)
        found = [p for p in found if ep == 1 or "ep" not in p.axes]
        layers = [layer for count, layer in self._kinds(part) for _ in range(count)]
        prefixes = [f"layers.{layer}." for layer in layers]
        places = [(-1, "embed.")] * part.first + list(enumerate(prefixes))
        places += [(len(layers), "norm."), (len(layers), "head.")] * part.last
        mine = [
            (block, p.name.removeprefix(prefix).removesuffix(".weight"), p.numel)
            for block, prefix in places
            for p in found
            if p.name.startswith(prefix)
        ]
        size = self.practice.recipe["grad_bytes"]
        groups = costs.buckets([size * numel for *_, numel in mine], costs.DEFAULT_BUCKET_BYTES)
        block, name, _ = mine[groups[0][-1]]
        full = size * sum(mine[i][2] for i in groups[0])
        return full, block, name if 0 <= block < len(layers) and len(groups) > 1 else None

    def _sent(self, where, sp, tp, cp, micro_batch, m, place) -> float:
        """To the stages beside it, of all micro-batches: waited for at the end of the step."""
        pp = where[0]
        times = (m + 1) * (place < pp - 1) + (m - 1) * (place > 0)
        return times * self._boundary(sp, tp, cp, micro_batch) if pp > 1 else 0.0

    def _boundary(self, sp, tp, cp, micro_batch) -> float:
        tokens = micro_batch * self.request.seq / cp / (tp if sp else 1)
        return tokens * self.config.hidden * costs.dtype_bytes(self.practice.dtype)

    def _of(self, micro_batch) -> dict:
        states = self.practice.states
        return {"micro_batch": micro_batch, "precision": states if states in PRECISIONS else "fp32"}

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


def _gone(saved: dict[str, int], name: str) -> int:
    """What a block's backward has let go when the gradient of a parameter is there. (The product
    that the last matrix reads has made room for its gradient.)"""
    if name.endswith("down"):
        return 0
    done = ["mlp"] if name.startswith("mlp.") else ["mlp", "mlp_norm"]
    if name in ("attention.qkv", "attention_norm"):
        done.append("attention")
    return sum(nbytes for module, nbytes in saved.items() if module.split(".")[0] in done)


def _where(layout: Layout) -> tuple:
    return layout.pp, layout.schedule, layout.stages


def _shards(layout: Layout) -> int:
    return layout.size(layout.shard_axis) if layout.zero else 1
