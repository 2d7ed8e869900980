"""Seconds of a step, by term.

On the rank with the most work a step of m micro-batches takes

    compute     m times forward, backward and what is recomputed: matrix products at the efficiency
                of matrices, at the device's rate for the format of their operands (attention's: for
                that of activations); everything else by the bytes it moves, which are twice
                (forward) and four times (backward) the bytes that the layer keeps, and its weights
    tp, cp, ep  m times their collectives; a ring of cp hides behind its attention
    pp          m times the sends over its boundaries
    bubble      what the schedule adds; F, B and W in the proportion of this model
    dp          gradients and parameters, as far as the last backward and the first forward (stage
                3: every one) do not hide them
    optimizer   the bytes of its states

Where several ranks share a core, work takes turns, and a rank that waits leaves its core to others:
then only the part of the bubble that is longer than the turns is lost.
"""

from collections import Counter
from typing import NamedTuple

from picolab import costs
from picolab.costs.parameters import attention_weights, has_experts, mlp_weights
from picolab.planner.parts import Candidate, Mix, Part, Parts, once
from picolab.specs import Layout
from picolab.specs.schedule_name import ScheduleName

TERMS = ("compute", "tp", "cp", "ep", "pp", "dp", "bubble", "optimizer")


class Micro(NamedTuple):
    """Seconds of one micro-batch on one rank. Their sum is what a stage takes for it."""

    forward: float
    backward: float
    """with what is recomputed"""
    weights: float
    """of backward, the gradients of weights: what a split backward may put off"""
    tp: float
    cp: float
    ep: float
    sent_forward: float
    """of tp, cp and ep, what belongs to the forward pass"""

    @property
    def compute(self) -> float:
        return self.forward + self.backward

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.tp + self.cp + self.ep

    def plus(self, other: "Micro", n: float = 1) -> "Micro":
        """This, and n times the other."""
        f, b, w, tp, cp, ep, sent = other
        return Micro(
            self.forward + n * f, self.backward + n * b, self.weights + n * w, self.tp + n * tp,
            self.cp + n * cp, self.ep + n * ep, self.sent_forward + n * sent,
        )  # fmt: skip


_NOTHING = Micro(0, 0, 0, 0, 0, 0, 0)


class Seconds(Parts):
    def seconds(self, candidate: Candidate) -> dict[str, float]:
        """Of one step, by term."""
        layout, micro_batch, recompute = candidate
        m, tp, cp = self.micro_batches(candidate), layout.tp, layout.cp
        where = (layout.pp, layout.schedule, layout.stages)
        micros, mean = self._micros_and_mean(
            where, tp, layout.sp, cp, layout.ep, micro_batch, recompute
        )
        sends, bubble = self._pipeline(
            where, tp, layout.sp, cp, layout.ep, micro_batch, recompute, m
        )
        shards = layout.size(layout.shard_axis) if layout.zero else 1
        sharded = layout.zero >= 2 and not self.practice.whole_gradients
        longest = -1.0
        for (part, _), micro in micros.items():
            dp, optimizer = self._data_parallel(
                part, tp, layout.ep, layout.dp * cp, layout.zero, shards, m, sharded,
                micro.forward, micro.backward,
            )  # fmt: skip
            took = m * micro.total + dp + optimizer
            if took > longest:
                longest, slowest, exposed, stepped = took, micro, dp, optimizer
        found = {
            "compute": m * slowest.compute,
            "tp": m * slowest.tp,
            "cp": m * slowest.cp,
            "ep": m * slowest.ep,
            "pp": sends,
            "dp": exposed,
            "bubble": bubble,
            "optimizer": stepped,
        }
        return found if self.turns == 1 else self._taking_turns(found, m, slowest, mean)

    def least_seconds(self, layout: Layout, micro_batch: int) -> float:
        """No candidate of this layout and micro-batch is faster, whatever it shards and recomputes:
        nothing is recomputed, gradients and parameters travel and are stepped in no time."""
        where = (layout.pp, layout.schedule, layout.stages)
        m = self.micro_batches(Candidate(layout, micro_batch, "none"))
        return self._least(where, layout.tp, layout.sp, layout.cp, layout.ep, micro_batch, m)

    @once
    def _least(self, where, tp, sp, cp, ep, micro_batch, m) -> float:
        micros, _ = self._micros_and_mean(where, tp, sp, cp, ep, micro_batch, "none")
        found = m * max(micro.total for micro in micros.values())
        return found + sum(self._pipeline(where, tp, sp, cp, ep, micro_batch, "none", m))

    def _pipeline(self, where, tp, sp, cp, ep, micro_batch, recompute, m) -> tuple[float, float]:
        """What sends and the bubble take in a step."""
        pp = where[0]
        if pp == 1:
            return 0.0, 0.0
        stages = len(self._stage_ranks(*where)) // pp
        send = self._send(stages, tp, sp, pp, cp, micro_batch)
        return m * send, self._bubble(where, tp, sp, cp, ep, micro_batch, recompute, m)

    @property
    def turns(self) -> float:
        """How many ranks share a core."""
        cores = self.hardware.cores
        return max(1.0, self.request.gpus / cores) if cores else 1.0

    def _taking_turns(self, found: dict[str, float], m: int, slowest: Micro, mean: Micro):
        """The cores have the work of all ranks to do; the slowest rank's way through the step, as
        if it had a core of its own, may take longer still."""
        alone = sum(found.values())
        share = mean.total / slowest.total
        for term in ("compute", "tp", "cp", "ep", "pp"):
            found[term] *= share * self.turns
        for term in ("dp", "optimizer"):
            found[term] *= self.turns
        found["bubble"] = 0.0
        found["bubble"] = max(0.0, alone - sum(found.values()))
        return found

    @once
    def _stage_ranks(self, pp, schedule, stages) -> tuple[int, ...]:
        return Layout(pp=pp, schedule=schedule, stages=stages).stage_ranks

    @once
    def _micros_and_mean(
        self, where, tp, sp, cp, ep, micro_batch, recompute
    ) -> tuple[dict[tuple[Part, Mix], Micro], Micro]:
        """Of each kind of place on pp, and the mean over the places."""
        places = self.mixes(where, recompute)
        counts = Counter(places)
        micros = {held: self.micro(*held, tp, sp, cp, ep, micro_batch) for held in counts}
        mean = _NOTHING
        for held, count in counts.items():
            mean = mean.plus(micros[held], count / len(places))
        return micros, mean

    @once
    def micro(self, part: Part, mix: Mix, tp, sp, cp, ep, micro_batch) -> Micro:
        """One micro-batch on a rank that holds this part."""
        total = _NOTHING
        for (_, layer), counts in zip(self._kinds(part), mix):
            for recompute, count in zip(costs.RECOMPUTE, counts):
                if count:
                    one = self._layer(layer, tp, sp, cp, ep, micro_batch, recompute)
                    total = total.plus(one, count)
        if part.first or part.last:
            ends = self._ends(part.first, part.last, tp, sp, cp, micro_batch)
            total = total.plus(ends)
        return total

    @once
    def _layer(self, layer, tp, sp, cp, ep, micro_batch, recompute) -> Micro:
        passes, again, sent = self._passes(layer, tp, sp, cp, ep, micro_batch)
        forward, backward, of_weights = passes
        times = 2 if recompute == "full" else 1  # the forward pass's collectives, once more
        return Micro(
            forward, backward + again[recompute], of_weights,
            *(times * there + back for there, back in sent), sum(there for there, _ in sent),
        )  # fmt: skip

    @once
    def _passes(self, layer, tp, sp, cp, ep, micro_batch) -> tuple[tuple, dict, list]:
        """Forward, backward without anything again, and of that the gradients of weights; what
        each kind of recomputation takes; collectives of tp, cp and ep, forward and backward."""
        config, practice = self.config, self.practice
        tokens = micro_batch * self.request.seq / cp
        mlp = mlp_weights(config, layer)
        inner = config.expert_ffn if has_experts(config, layer) else config.ffn
        heads_here, attention_here = self._shares(tp)
        ffn_here = _share(inner, tp)
        own = attention_weights(config) * attention_here + mlp.passed * ffn_here
        passed = own + mlp.router
        if ep > 1 and mlp.router:  # the rank with the most rows; the others wait for it
            each, shared = config.experts_per_token, config.shared_experts
            routed = mlp.passed * ffn_here * each / (each + shared)
            passed += (self.request.imbalance - 1) * routed
        held = own + (mlp.held - mlp.passed) * ffn_here / ep

        matrices = 2 * passed * tokens / self._rate
        low = config.latent
        widths = low.nope_dim + low.rope_dim + low.value_dim if low else 2 * config.head_dim
        square = 2 * config.heads * heads_here * widths * self.request.seq * tokens
        square /= self.hardware.matrix_flops(practice.dtype) * self.efficiency.attention
        if practice.attention == "flash":  # half the square; backward has the scores once more
            attention, attention_back = square / 2, 2.5 * square / 2
        else:
            attention, attention_back = square, 2 * square

        none, cheap_left = (
            self._kept(layer, tp, sp, cp, micro_batch, which) for which in ("none", "selective")
        )
        moved = 2 * none / self._bandwidth
        recipe = practice.recipe
        weights = held * recipe["param_bytes"] / self._bandwidth
        accumulated = 2 * held * recipe["grad_bytes"] / self._bandwidth

        forward = matrices + attention + moved + weights
        of_weights = matrices + accumulated
        backward = of_weights + matrices + attention_back + 2 * moved + weights
        cheap = 2 * (none - cheap_left) / self._bandwidth
        if practice.attention == "scores":
            cheap += attention
        sent = [
            self._tp_layer(tp, sp, cp, micro_batch),
            self._cp_layer(tp, cp, micro_batch, attention, attention_back),
            self._ep_layer(tp, sp, cp, ep, micro_batch) if mlp.router else (0.0, 0.0),
        ]
        return (
            (forward, backward, of_weights),
            {"none": 0.0, "selective": cheap, "full": forward},
            sent,
        )

    @once
    def _shares(self, tp) -> tuple[float, float]:
        """Of the query heads and of attention's matrices, what the rank with the most has."""
        config = self.config
        if config.latent:
            return (_share(config.heads, tp),) * 2
        queries, keys = map(len, costs.head_slices(config.heads, config.kv_heads, tp, 0))
        return queries / config.heads, (queries + keys) / (config.heads + config.kv_heads)

    @once
    def _ends(self, first, last, tp, sp, cp, micro_batch) -> Micro:
        """The embedding, which is a look-up, and the head with the loss."""
        config = self.config
        tokens = micro_batch * self.request.seq / cp
        payload = self._activation(cp, micro_batch)
        there = self._collective("all_reduce", payload, tp, 1) if first else 0.0
        if not last:
            return Micro(0, 0, 0, there, 0, 0, there)
        there += self._collective("all_reduce", 3 * 4 * tokens, tp, 1)  # of the loss
        back = self._collective("all_reduce", payload, tp, 1)
        matrices = 2 * config.vocab * _share(config.vocab, tp) * config.hidden * tokens / self._rate
        moved = 2 * self._loss(tp, sp, cp, micro_batch) / self._bandwidth
        forward = matrices + moved
        return Micro(forward, 2 * forward, matrices, there + back, 0, 0, there)

    def _tp_layer(self, tp, sp, cp, micro_batch) -> tuple[float, float]:
        """Forward and backward: an all-reduce each for attention and MLP. With sp it is a reduce-
        scatter and an all-gather, and the backward pass gathers the two inputs once more
        (arXiv 2205.05198, section 4.2.2)."""
        if tp == 1:
            return 0.0, 0.0
        payload = self._activation(cp, micro_batch)
        if not sp:
            both = 2 * self._collective("all_reduce", payload, tp, 1)
            return both, both
        gather = 2 * self._collective("all_gather", payload, tp, 1)
        scatter = 2 * self._collective("reduce_scatter", payload, tp, 1)
        return gather + scatter, 2 * gather + scatter

    def _cp_layer(self, tp, cp, micro_batch, attention, attention_back) -> tuple[float, float]:
        """Forward and backward: keys and values hop on c - 1 times while a block is computed with;
        backward their gradients (fp32) hop with them, c times."""
        if cp == 1:
            return 0.0, 0.0
        config, size = self.config, costs.dtype_bytes(self.practice.dtype)
        if config.latent:  # the compressed keys and values are all that others need
            width = config.latent.kv_rank + config.latent.rope_dim
        else:
            keys = len(costs.head_slices(config.heads, config.kv_heads, tp, 0)[1])
            width = 2 * keys * config.head_dim
        numbers = micro_batch * self.request.seq / cp * width
        hops = (cp - 1) * self._collective("send", numbers * size, cp, tp)
        back = hops + cp * self._collective("send", numbers * max(4, size), cp, tp)
        if not self.practice.overlap:
            return hops, back
        return max(0.0, hops - attention), max(0.0, back - attention_back)

    def _ep_layer(self, tp, sp, cp, ep, micro_batch) -> tuple[float, float]:
        """Forward and backward: each token to its experts and back. The slowest rank's."""
        if ep == 1:
            return 0.0, 0.0
        payload = self._activation(cp, micro_batch) * self.config.experts_per_token
        payload *= self.request.imbalance
        both = 2 * self._collective("all_to_all", payload / (tp if sp else 1), ep, tp)
        return both, both

    @once
    def _send(self, stages, tp, sp, pp, cp, micro_batch) -> float:
        """A boundary forward and one backward, for each stage on the rank."""
        payload = self._activation(cp, micro_batch) / (tp if sp or self.practice.scatter else 1)
        return 2 * stages * self._collective("send", payload, pp, self.request.gpus // pp)

    @once
    def _bubble(self, where, tp, sp, cp, ep, micro_batch, recompute, m) -> float:
        """The schedule's, of ranks that take as long as the mean one."""
        pp, schedule, _ = where
        _, mean = self._micros_and_mean(where, tp, sp, cp, ep, micro_batch, recompute)
        F, W = mean.forward + mean.sent_forward, mean.weights
        B = mean.total - F - W
        family = ScheduleName.parse(schedule).family
        if family == "zb-v":  # within the bounds of its closed form
            F = W = (F + W) / 2
            B = min(max(B, F), F + W)
        elif family == "dualpipe-v":
            F = B = W = mean.total / 3
        found = costs.bubble(schedule, pp, m, forward=F, backward_input=B, backward_weight=W)
        return float(found)

    @once
    def _data_parallel(
        self, part, tp, ep, replicas, zero, shards, m, sharded, forward, backward
    ) -> tuple[float, float]:
        """Seconds for which gradients and parameters are waited, and those of the optimizer.

        sharded: gradients leave after every micro-batch, not once a step.
        """
        held = self.parameters(part, tp, ep)
        recipe = self.practice.recipe
        scatters = gathers = reduces = 0.0
        for count, apart in ((held.dense, 1), (held.experts, ep)):
            n, group, stride = replicas // apart, max(1, shards // apart), tp * apart
            gradients, parameters = count * recipe["grad_bytes"], count * recipe["param_bytes"]
            if zero:
                scatters += self._collective("reduce_scatter", gradients, group, stride)
                gathers += self._collective("all_gather", parameters, group, stride)
                gradients, n, stride = gradients / group, n // group, stride * group
            reduces += self._collective("all_reduce", gradients, n, stride)
        if not self.practice.overlap:
            forward = backward = 0.0
        # Each micro-batch hides what travels in it; stage 3 gathers in every one, forward and back.
        often = scatters if sharded else 0.0
        gathered = gathers if zero == 3 else 0.0
        each = max(0.0, gathered - forward) + max(0.0, gathered + often - backward)
        exposed = (m - 1) * each + max(0.0, gathers - forward)
        exposed += max(0.0, gathered + scatters + reduces - backward)
        moved = sum(recipe.values()) + recipe["master_bytes"] + recipe["moment_bytes"]
        mine = held.dense / shards + held.experts / max(1, shards // ep)
        return exposed, mine * moved / self._bandwidth

    @property
    def _rate(self) -> float:
        """Of linears' products, in the format of their operands."""
        return self.hardware.matrix_flops(self.practice.multiplied) * self.efficiency.matrices

    @property
    def _bandwidth(self) -> float:
        return self.hardware.memory_bytes_per_s * self.efficiency.memory

    def _activation(self, cp: int, micro_batch: int) -> float:
        """Bytes of what lies between layers, b*s'*h."""
        size = costs.dtype_bytes(self.practice.dtype)
        return micro_batch * self.request.seq / cp * self.config.hidden * size

    def _collective(self, op: str, payload: float, n: int, stride: int) -> float:
        """Among n ranks, so many ranks apart."""
        if n == 1:
            return 0.0
        alpha, rate = self._link(op, n, stride)
        return costs.collective_time(op, payload, n, alpha, 1 / rate)

    @once
    def _link(self, op: str, n: int, stride: int) -> tuple[float, float]:
        """All that `costs.link` asks of a layout is how a group lies among the ranks."""
        layout = Layout(tp=stride, dp=n, pp=self.request.gpus // (n * stride))
        alpha, rate = costs.link(self.hardware, layout, "dp", op)
        return alpha, rate * self.efficiency.links


def _share(size: int, tp: int) -> float:
    """Of something in `size` whole pieces, what the rank with the most has."""
    return -(-size // tp) / size if size else 0.0
