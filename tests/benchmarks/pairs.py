"""All-reduce between two ranks: gloo's own against swap and add. `python tests/benchmarks/pairs.py`

Prints CPU and wall milliseconds a rank for several sizes, the best of four rounds. The crossing is
`comm.collectives.PAIR_BYTES`. Nothing is asserted.
"""

import time

import picolab as pico

SIZES_KB = (16, 64, 128, 256, 512, 1024, 4096)
ROUNDS, CALLS = 4, 100


def measure() -> list[list[float]]:
    import torch

    from picolab.comm import collectives

    m, rows = pico.comm.mesh(), []
    for kb in SIZES_KB:
        x = torch.ones(kb * 256)

        def gloo(x=x):
            collectives._all_reduce(x, group=m.group("world"))

        def pair(x=x):
            collectives._exchange_and_combine(m, "world", x, "sum")

        row = [kb]
        for call in (gloo, pair):
            cpu, wall = [], []
            for _ in range(ROUNDS):
                x.zero_()
                began, began_cpu = time.perf_counter(), time.process_time()
                for _ in range(CALLS):
                    call()
                wall.append((time.perf_counter() - began) / CALLS * 1e3)
                cpu.append((time.process_time() - began_cpu) / CALLS * 1e3)
            row += [min(cpu), min(wall)]
        rows.append(row)
    return rows


def main() -> None:
    print("   KB   gloo: CPU   wall ms    pair: CPU   wall ms")
    for kb, *times in pico.run(measure, world_size=2, quiet=True)[0]:
        print(f"{kb:>5} {times[0]:>11.3f} {times[1]:>9.3f} {times[2]:>12.3f} {times[3]:>9.3f}")


if __name__ == "__main__":
    main()
