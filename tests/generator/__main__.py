from __future__ import annotations
import argparse, collections, sys, time, traceback
from tests.generator.judge import Judge, reason


def bench_class(b):
    if b == "torch":
        from tests.generator.torch_bench import TorchBench
        import torch

        torch.set_num_threads(1)
        return TorchBench
    from tests.generator.keras_bench import KerasBench

    return KerasBench


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--seed", type=int)
    a.add_argument("--backend", default="torch")
    a.add_argument("--count", type=int, default=1)
    o = a.parse_args()
    B = bench_class(o.backend)
    tot = collections.Counter()
    start = time.time()
    for s in range(o.seed, o.seed + o.count):
        try:
            b = B.draw(s)
            v = Judge(b, 4 if o.backend != "torch" and o.count > 1 else None).run()
        except Exception:
            print("SEED", s, "judge broke")
            traceback.print_exc()
            tot["broke"] += 1
            continue
        if o.count == 1:
            print(b.case)
        for x in v:
            tot[x.outcome] += 1
            if x.outcome != "right" or o.count == 1:
                print(
                    s,
                    b.case.layer,
                    b.case.place.axes,
                    sorted(b.case.quirks),
                    x.face,
                    x.outcome,
                    x.asked,
                    x.text,
                    x.error,
                )
    print(tot, time.time() - start)


main()
