"""The web service under load: answers lost or wrong, latency, memory, and what batching gains.

    python benchmarks/service.py [--requests 2000] [--clients 32] [--figure service.png]

A service in a process of its own, on loopback, with preset `tiny` at 224 px (random weights: speed does not depend on
them). Clients send PNG and DICOM uploads with notes, and of every eight requests one damaged file and one that is no
image; each answer is compared with the library's. Prints p50 and p95 of the time to an answer, and the memory of the
service. Then good requests alone, with batching (up to 16 at a time) and without (one at a time), in alternation: the
ratio of their throughputs. Takes about five minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import requests

TESTS = Path(__file__).resolve().parent.parent / 'tests' / 'service'
sys.path.insert(0, str(TESTS))

from test_under_load import questions  # noqa: E402
from toy_service import form, largest_difference, toy_predictor  # noqa: E402

from cxr_lib.data.elements import FileInMemory  # noqa: E402

SIZE = 224
PROGRAM = f'''import sys
from toy_service import toy_predictor
from cxr_lib.prediction.serving import Limits
from cxr_lib.service import running_service
limits = Limits(batch=int(sys.argv[1]))
with running_service(toy_predictor({SIZE}), limits, page=False) as address:
    print(address, flush=True)
    sys.stdin.read()
'''


class Service:
    "A service in a process of its own, and its memory over time"

    def __init__(self, batch):
        path = os.pathsep.join([str(TESTS), str(TESTS.parent.parent), os.environ.get('PYTHONPATH', '')])
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        command = [sys.executable, '-c', PROGRAM, str(batch)]
        self.process = subprocess.Popen(command, env=os.environ | dict(PYTHONPATH=path), **pipes)
        self.address = self.process.stdout.readline().strip()
        self.memory = []  # (seconds, MB)
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        seen, start = psutil.Process(self.process.pid), time.perf_counter()
        while self.process.poll() is None:
            try:
                self.memory.append((time.perf_counter() - start, seen.memory_info().rss / 1e6))
            except psutil.NoSuchProcess:
                return
            time.sleep(0.2)

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


def load(address, asked, clients):
    "Send everything; (responses, seconds of each, seconds of all)"
    sessions = threading.local()

    def ask(question):
        if not hasattr(sessions, 'own'):
            sessions.own = requests.Session()
        _, name, data, note = question
        start = time.perf_counter()
        answer = sessions.own.post(f'{address}/v1/predictions', **form(data, note, name), timeout=120)
        return answer, time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(ask, asked))
    return [a for a, _ in found], np.array([s for _, s in found]), time.perf_counter() - start


def check(answers, asked):
    "(answers with another status than expected, largest difference from the library)"
    predictor, own, worst = toy_predictor(SIZE), {}, 0.0
    lost = sum(a.status_code != status for a, (status, *_) in zip(answers, asked, strict=True))
    for answer, (status, name, data, note) in zip(answers, asked, strict=True):
        if status == answer.status_code == 200:
            key = (name, data, note)
            if key not in own:
                own[key] = predictor(FileInMemory(name, data), note=note)
            worst = max(worst, largest_difference(answer.json(), own[key]))
    return lost, worst


def draw(memory, path):
    "Memory of the service over time"
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    from cxr_lib.foundations.figures import BLUE, save_figure, set_theme

    set_theme()
    seconds, megabytes = zip(*memory)
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot(seconds, megabytes, color=BLUE)
    ax.set(xlabel='time (s)', ylabel='resident memory (MB)', ylim=(0, None))
    ax.set_title('The service under load: memory stays flat')
    save_figure(fig, path)


def mixed(count, clients, figure):
    "Good and bad requests"
    service, asked = Service(16), list(questions(count))
    load(service.address, asked[:64], clients)  # warm
    first = len(service.memory)
    answers, seconds, total = load(service.address, asked, clients)
    memory = service.memory[first:]
    service.close()
    lost, worst = check(answers, asked)
    p50, p95 = np.quantile(seconds, (0.5, 0.95)) * 1000
    print(
        f'{count:,} requests of {clients} clients in {total:.0f} s: {lost} lost, largest difference {worst:.1e}'
    )
    print(f'time to an answer: p50 {p50:.0f} ms, p95 {p95:.0f} ms')
    levels = np.array([mb for _, mb in memory])
    quarters = [part.mean() for part in np.array_split(levels, 4)]
    print('memory by quarter of the run, MB: ' + ', '.join(f'{q:.0f}' for q in quarters))
    if figure:
        draw(memory, Path(figure))
    if lost or not worst < 1e-6:
        sys.exit('answers were lost or wrong')


def batching(count, clients, rounds):
    "Throughput with and without batching, in alternation"
    asked = [q for q in questions(2 * count) if q[0] == 200][:count]
    services = {16: Service(16), 1: Service(1)}
    rates = {batch: [] for batch in services}
    for service in services.values():
        load(service.address, asked[:64], clients)
    for _ in range(rounds):
        for batch, service in services.items():
            rates[batch].append(count / load(service.address, asked, clients)[2])
    for service in services.values():
        service.close()
    ratios = np.array(rates[16]) / rates[1]
    with_batching, without = np.median(rates[16]), np.median(rates[1])
    print(f'requests per second: {with_batching:.0f} with batching, {without:.0f} without')
    print(f'ratio {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f} over {rounds} rounds)')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--requests', type=int, default=2000)
    p.add_argument('--clients', type=int, default=32)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--figure', metavar='FILE', help='draw memory over time')
    args = p.parse_args()
    mixed(args.requests, args.clients, args.figure)
    batching(min(500, args.requests), args.clients, args.rounds)


if __name__ == '__main__':
    main()
