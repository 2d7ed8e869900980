"""Wrong answers to memory.offload.hooks, what each author must be told, and right ones."""

import weakref

import torch

from picolab.chapters.c05_memory.offload_hooks import solution


def _offload(
    blocks,
    x,
    far,
    stays,
    *,
    is_home=None,
    shared=True,
    by_address=False,
    holds=False,
    prefetch="one ahead",
    frees=True,
    frees_when="the graph is gone",
    keeps_near=True,
    rebuild=None,
    hold_near=None,
    per_block=False,
    whole=True,
    hook_if_wanted=True,
    least=0,
    known=None,
):
    """The solution in another style, with one thing to be done otherwise."""
    home = {one.untyped_storage().data_ptr() for one in stays}
    known = {} if known is None else known

    class Away:
        def __init__(self, storage):
            self.ticket, self.asked, self.near = far.put(storage), False, None
            if frees:
                self.end = weakref.finalize(self, far.free, self.ticket)

        def fetch(self):
            if not self.asked:
                far.fetch(self.ticket)
            self.asked = True

        def back(self):
            if self.near is not None:
                return self.near
            found = far.take(self.ticket)
            self.asked = True
            if keeps_near:
                self.near = found
            if hold_near is not None:
                hold_near.append(found)
            if frees_when == "it is back":
                far.free(self.ticket)
            return found

    def away(storage):
        if not shared:
            return Away(storage)
        address = storage.data_ptr()
        before = known.get(address)
        if before is not None:
            of, entry = before
            if by_address or (of if holds else of()) is storage:
                found = entry if by_address else entry()
                if found is not None:
                    return found
        found = Away(storage)
        of = storage if holds else (None if by_address else weakref.ref(storage))
        known[address] = of, (found if by_address else weakref.ref(found))
        return found

    parcels = []

    def run(block, x):
        here = []
        parcels.append(here)

        def pack(tensor):
            storage = tensor.untyped_storage()
            stay = storage.data_ptr() in home if is_home is None else is_home(tensor, stays)
            if stay or storage.nbytes() < least:
                return tensor
            if not whole:
                storage = tensor.detach().clone().untyped_storage()
            entry = away(storage)
            here.append(weakref.ref(entry))
            view = (tensor.storage_offset(), tensor.size(), tensor.stride())
            return entry, tensor.dtype, view

        def unpack(packed):
            if isinstance(packed, torch.Tensor):
                return packed
            entry, dtype, view = packed
            if rebuild is not None:
                return rebuild(entry.back(), dtype, view)
            return torch.empty(0, dtype=dtype).set_(entry.back(), *view)

        number = len(parcels) - 1

        def begins(_):
            which = {
                "one ahead": [number - 1],
                "two ahead": [number - 2, number - 1],
                "all": range(number),
                "itself": [number],
                "the next": [number + 1],
                "never": [],
            }[prefetch]
            for i in which:
                for ref in reversed(parcels[i]) if 0 <= i < len(parcels) else ():
                    if (entry := ref()) is not None:
                        entry.fetch()

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = block(x)
        if y.requires_grad or not hook_if_wanted:
            y.register_hook(begins)
        if per_block:
            known.clear()
        return y

    for block in blocks:
        x = run(block, x)
    return x


def each_tensor_travels(blocks, x, far, stays):
    """A storage is moved as often as something of it is kept."""
    return _offload(blocks, x, far, stays, shared=False)


def fetched_when_asked(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, prefetch="never")


def once_a_block(blocks, x, far, stays):
    """What is known is forgotten with each block."""
    return _offload(blocks, x, far, stays, per_block=True)


def known_by_address(blocks, x, far, stays):
    """The same address is taken for the same storage."""
    return _offload(blocks, x, far, stays, by_address=True)


def holds_what_it_has_put_away(blocks, x, far, stays):
    """So that no address is another's; and nothing is ever gone."""
    known = {}
    y = _offload(blocks, x, far, stays, holds=True, known=known)
    known.clear()  # at the end, which is too late
    return y


def fetched_when_it_begins(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, prefetch="itself")


def in_the_forwards_order(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, prefetch="the next")


def all_at_once(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, prefetch="all")


def two_ahead(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, prefetch="two ahead")


def parameters_as_objects(blocks, x, far, stays):
    """`weight.t()` is no parameter, and travels."""

    def is_home(tensor, stays):
        return any(tensor is one for one in stays)

    return _offload(blocks, x, far, stays, is_home=is_home)


def leaves_stay(blocks, x, far, stays):
    """Tables are no leaves that want a gradient; and the input is one."""

    def is_home(tensor, stays):
        base = tensor._base if tensor._base is not None else tensor
        return base.requires_grad and base.is_leaf

    return _offload(blocks, x, far, stays, is_home=is_home)


def everything_travels(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, is_home=lambda tensor, stays: False)


def never_freed(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, frees=False)


def freed_when_it_is_back(blocks, x, far, stays):
    """And never, if nobody takes it."""
    return _offload(blocks, x, far, stays, frees=False, frees_when="it is back")


def freed_twice(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, frees_when="it is back")


def taken_for_each(blocks, x, far, stays):
    """What came back is not kept for the next operator that needs it."""
    return _offload(blocks, x, far, stays, keeps_near=False)


def keeps_what_came_back(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, hold_near=[])


def without_strides(blocks, x, far, stays):
    def rebuild(storage, dtype, view):
        offset, size, _ = view
        made = torch.empty(0, dtype=dtype)
        n = storage.nbytes() // made.itemsize
        flat = made.set_(storage, 0, (n,), (1,))
        return flat[offset : offset + size.numel()].view(size)

    return _offload(blocks, x, far, stays, rebuild=rebuild)


def without_offsets(blocks, x, far, stays):
    def rebuild(storage, dtype, view):
        _, size, stride = view
        return torch.empty(0, dtype=dtype).set_(storage, 0, size, stride)

    return _offload(blocks, x, far, stays, rebuild=rebuild)


def the_views_numbers_alone(blocks, x, far, stays):
    """A contiguous copy of each view, with the strides that it had."""
    return _offload(blocks, x, far, stays, whole=False, shared=False)


def hooks_on_everything(blocks, x, far, stays):
    """Also where nobody wants a gradient."""
    return _offload(blocks, x, far, stays, hook_if_wanted=False)


def small_ones_stay(blocks, x, far, stays):
    return _offload(blocks, x, far, stays, least=1024)


def keeps_all(blocks, x, far, stays):
    for block in blocks:
        x = block(x)
    return x


def puts_tensors(blocks, x, far, stays):
    def pack(tensor):
        return far.put(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, far.take):
        for block in blocks:
            x = block(x)
    return x


def by_the_package(blocks, x, far, stays):
    from picolab.memory import MemoryPool, Offload
    from picolab.memory.offload import Parcel

    offload, parcel = Offload(MemoryPool(1 << 30), None, stays), None
    for block in blocks:
        parcel = Parcel(parcel)
        with offload.saving(parcel):
            x = block(x)
        if x.requires_grad:
            x.register_hook(lambda _, parcel=parcel: offload.fetch(parcel.before))
    return x


def by_save_on_cpu(blocks, x, far, stays):
    with torch.autograd.graph.save_on_cpu():
        for block in blocks:
            x = block(x)
    return x


def the_result_is_cut_off(blocks, x, far, stays):
    return solution(blocks, x, far, stays).detach()


def numbers_stay(blocks, x, far, stays):
    """What is one number only is not worth the way."""
    return _offload(blocks, x, far, stays, least=16)


_before: list = []


def one_list_for_all_calls(blocks, x, far, stays):
    """Blocks are numbered through: before a graph's first block comes another graph's last."""
    home = {one.untyped_storage().data_ptr() for one in stays}
    known = {}

    class Away:
        def __init__(self, storage):
            self.ticket, self.asked, self.near = far.put(storage), False, None
            weakref.finalize(self, far.free, self.ticket)

        def fetch(self):
            if not self.asked:
                far.fetch(self.ticket)
            self.asked = True

    def run(block, x):
        here, number = weakref.WeakSet(), len(_before)
        _before.append(here)

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() in home:
                return tensor
            of, entry = known.get(storage.data_ptr(), (lambda: None, lambda: None))
            found = entry() if of() is storage else None
            if found is None:
                found = Away(storage)
                known[storage.data_ptr()] = weakref.ref(storage), weakref.ref(found)
            here.add(found)
            return found, tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()

        def unpack(packed):
            if isinstance(packed, torch.Tensor):
                return packed
            for other in (here, next((of for of in reversed(_before[:number]) if of), ())):
                for one in list(other):
                    one.fetch()
            entry, dtype, *view = packed
            entry.near = entry.near if entry.near is not None else far.take(entry.ticket)
            return torch.empty(0, dtype=dtype).set_(entry.near, *view)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return block(x)

    for block in blocks:
        x = run(block, x)
    return x


MUTANTS = {
    fetched_when_asked: "when that backward asked for it",
    each_tensor_travels: "the same storage is moved twice",
    once_a_block: "moved twice, for block 0 and block 1",
    known_by_address: "3 blocks",
    holds_what_it_has_put_away: "still held by somebody",
    fetched_when_it_begins: "when that backward had begun",
    in_the_forwards_order: "asked for it",
    all_at_once: "too early",
    two_ahead: "too early",
    parameters_as_objects: "a storage is moved that stays where it is",
    leaves_stay: "and autograd keeps",
    everything_travels: "a storage is moved that stays where it is",
    never_freed: "are never freed",
    freed_when_it_is_back: "dropped without a backward",
    freed_twice: "is freed twice",
    taken_for_each: "is taken twice",
    keeps_what_came_back: "what a block has used is let go",
    without_strides: "views of one product",
    without_offsets: "views of one product",
    the_views_numbers_alone: "and autograd keeps",
    hooks_on_everything: "cannot register a hook on a tensor",
    small_ones_stay: "and autograd keeps",
    keeps_all: "are still near",
    puts_tensors: "far.put takes a storage",
    by_the_package: "is what this exercise asks you to write",
    by_save_on_cpu: "are still near",
    the_result_is_cut_off: "wants no gradient",
    numbers_stay: "small ones travel, too",
    one_list_for_all_calls: "is fetched in the backward of another",
}


def the_first_unpack_asks_for_the_next(blocks, x, far, stays):
    """No tensor hooks: whichever unpack of a block comes first fetches the block before it; blocks
    that keep nothing are not in the chain."""
    mine = [one.untyped_storage()._cdata for one in stays]
    stands_for = weakref.WeakKeyDictionary()

    class Here:
        def __init__(self, ticket):
            self.ticket, self.storage, self.comes = ticket, None, False

        def __del__(self):
            far.free(self.ticket)

        def come(self):
            if not self.comes:
                self.comes = True
                far.fetch(self.ticket)

        def get(self):
            self.come()
            if self.storage is None:
                self.storage = far.take(self.ticket)
            return self.storage

    last = []
    for block in blocks:
        before, own = last, []

        def pack(t, own=own):
            storage = t.untyped_storage()
            if storage._cdata in mine:
                return lambda: t
            here = stands_for.get(storage)
            here = here() if here is not None else None
            if here is None:
                here = Here(far.put(storage))
                stands_for[storage] = weakref.ref(here)
            own.append(weakref.ref(here))
            meta = t.dtype, t.storage_offset(), tuple(t.shape), t.stride()
            return here, meta

        def unpack(packed, before=before, begun=[]):  # noqa: B006
            if callable(packed):
                return packed()
            here, (dtype, *view) = packed
            got = here.get()
            for ref in before:
                other = ref()
                if other is not None:
                    other.come()
            before.clear()
            return torch.empty([], dtype=dtype).set_(got, *view)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            x = block(x)
        last = own if own else last
    return x


def one_object_a_run(blocks, x, far, stays):
    class Traffic:
        def __init__(self):
            self.parcels = [[] for _ in blocks]
            self.at = 0
            self.entries = {}

        def pack(self, tensor):
            storage = tensor.untyped_storage()
            if any(storage.data_ptr() == one.untyped_storage().data_ptr() for one in stays):
                return tensor
            ref, entry = self.entries.get(storage.data_ptr(), (None, None))
            found = entry() if ref is not None and ref() is storage else None
            if found is None:
                found = {"ticket": far.put(storage)}
                found = _Entry(found)
                weakref.finalize(found, far.free, found.of["ticket"])
                self.entries[storage.data_ptr()] = weakref.ref(storage), weakref.ref(found)
            self.parcels[self.at].append(weakref.ref(found))
            return found, torch.empty(0, dtype=tensor.dtype), (
                tensor.storage_offset(), tensor.size(), tensor.stride())  # fmt: skip

        def unpack(self, kept):
            if isinstance(kept, torch.Tensor):
                return kept
            entry, empty, view = kept
            if "near" not in entry.of:
                entry.of["near"] = far.take(entry.of["ticket"])
            return empty.new_empty(0).set_(entry.of["near"], *view)

        def ahead(self, number):
            for ref in self.parcels[number]:
                entry = ref()
                if entry is not None and not entry.of.get("asked") and "near" not in entry.of:
                    entry.of["asked"] = True
                    far.fetch(entry.of["ticket"])

    class _Entry:
        def __init__(self, of):
            self.of = of

    traffic = Traffic()
    for i, block in enumerate(blocks):
        traffic.at = i
        with torch.autograd.graph.saved_tensors_hooks(traffic.pack, traffic.unpack):
            x = block(x)
        if i and x.requires_grad:
            x.register_hook(lambda grad, i=i: traffic.ahead(i - 1))
    return x


RIGHT = (one_object_a_run, the_first_unpack_asks_for_the_next)
