"""Faults of the catalogue that need experts on several ranks."""

from picolab import comm
from picolab.debug.faults import fault, patched, reduction
from picolab.moe import experts as layers
from picolab.moe import strategy
from picolab.moe.router import Router
from picolab.parallel import experts, three_d

_EDP = "NVIDIA/Megatron-LM PR 5956, pytorch issue 160285 (expert gradients exactly ep times)"
_LIKE = "the same mistake as its neighbours, at another place"

reduction(
    "ep-gradients",
    "ep: gradient bucket",
    "several of each expert",
    {"missing": _LIKE, "doubled": _LIKE, "averaged": _LIKE},
)
reduction(
    "tp-head-norms",
    "tp: gradients of heads' norms",
    "norms of heads",
    {"missing": "NVIDIA/Megatron-LM issue 1446 (gradients of norms differ over tp)"},
)


@fault(
    "ep-gradients-undivided",
    "gradients of experts are ep times what they should be",
    _EDP,
    "ep",
)
def _undivided(layout):
    owner = strategy.MoEParallelStrategy
    real = owner.finish_gradients

    def finish_gradients(self, parameters):
        real(self, parameters)
        for parameter in parameters:
            if any("ep" in piece.axes for piece in parameter.pieces):
                parameter.grad.mul_(layout.ep)

    with patched(owner, "finish_gradients", finish_gradients):
        yield


@fault(
    "ep-experts-over-all-replicas",
    "gradients of experts are summed over all of dp and cp, where ranks hold different experts",
    "NVIDIA/Megatron-LM PR 5956 (which group an expert's gradient belongs to)",
    "ep without zero",
)
def _over_all_replicas(layout):
    with patched(three_d, "_apart", lambda parameter: False):
        yield


@fault(
    "ep-balance-loss-times-tp",
    "the balance loss goes through the sum over tp that is meant for what ranks of tp share",
    "NVIDIA/Megatron-LM issue 7452 (scale of the auxiliary loss in composed layouts)",
    "ep and tp",
)
def _times_tp(layout):
    real = layers.attach

    def attach(x, loss, share):
        return real(x, loss, share * layout.tp)

    with patched(layers, "attach", attach):
        yield


@fault(
    "ep-balance-loss-on-each-rank",
    "every rank of cp adds the gradient of the whole pool's balance loss, and they are summed",
    "NVIDIA/Megatron-LM issue 7452 (scale of the auxiliary loss in composed layouts)",
    "ep and cp",
)
def _on_each_rank(layout):
    real = strategy.share_loss

    def share_loss(model, pools, scale):
        real(model, pools / layout.cp, scale)

    with patched(strategy, "share_loss", share_loss):
        yield


@fault(
    "ep-choice-differs-over-tp",
    "ranks of tp choose other experts for the same token (as noise drawn on each rank would)",
    "pytorch/torchtitan, activation_checkpoint.py (why a choice is kept and not made again)",
    "ep and tp",
)
def _choice_differs(layout):
    real, owner = Router._choice, strategy.MoEParallelStrategy
    after = owner.after_step

    def choice(self, scores_TE):
        return real(self, scores_TE).roll(comm.mesh().rank("tp"), dims=1)

    def after_step(self):
        """Routers that drift apart would soon drop unequal numbers of rows, and the next collective
        of tp would be of two sizes: that fails by itself, and needs no oracle."""
        after(self)
        for layer in self.layers:
            for parameter in layer.router.parameters():
                comm.broadcast(parameter.data, "tp", "moe: routers kept equal")

    with patched(Router, "_choice", choice), patched(owner, "after_step", after_step):
        yield


@fault(
    "ep-pool-of-one-rank",
    "capacity and balance are taken over a rank's own part of the sequences, not over the pool",
    "NVIDIA/Megatron-LM issue 7452 (what is counted over cp)",
    "ep and cp",
)
def _own_part(layout):
    pool = experts.SequencePool
    real = pool.gather

    def gather(self, logits_BSE):
        real(self, logits_BSE)  # the collective is there; its result is not used
        return logits_BSE

    with patched(pool, "gather", gather), patched(pool, "mine", lambda self, own: own):
        yield
