#!/usr/bin/env bash
# Asked: can a server keep answering other clients while a long prompt is tokenized in a worker thread?
# Version: tokenizers 0.23.3 (Python 3.11, Linux x86-64).
# Behaviour: `Tokenizer.encode(text)` and `Tokenizer.decode(ids)` hold the interpreter lock for the whole call, so every
# other Python thread stands still. `encode_batch([text])` and `decode_batch([ids])` do the same work without holding it.
# Nothing in the documentation tells the two apart.
# Output seen (2026-11-29): encode: another thread stood still for 98% of the call; encode_batch: 2%; decode: 100%;
# decode_batch: 8%
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PY'
import random
import threading
import time

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

random.seed(0)
words = ["".join(random.choices("abcdefghijklmnop", k=random.randint(2, 9))) for _ in range(3000)]
tokenizer = Tokenizer(models.BPE(byte_fallback=True))
tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
tokenizer.decoder = decoders.Metaspace()
trainer = trainers.BpeTrainer(vocab_size=4000, show_progress=False)
tokenizer.train_from_iterator([" ".join(words)], trainer)
text = " ".join(random.choices(words, k=300_000))
ids = tokenizer.encode_batch([text])[0].ids * 4


def share(call):
    """The longest time that a second thread stood still, as a share of the call's."""
    stop, longest = threading.Event(), 0.0

    def watch():
        nonlocal longest
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=watch)
    thread.start()
    time.sleep(0.05)
    begun = time.perf_counter()
    call()
    taken = time.perf_counter() - begun
    stop.set()
    thread.join()
    return min(1.0, longest / taken)


calls = {
    "encode": lambda: tokenizer.encode(text),
    "encode_batch": lambda: tokenizer.encode_batch([text]),
    "decode": lambda: tokenizer.decode(ids),
    "decode_batch": lambda: tokenizer.decode_batch([ids]),
}
shares = {name: share(call) for name, call in calls.items()}
for name, value in shares.items():
    print(f"{name}: another thread stood still for {value:.0%} of the call")
assert shares["encode"] > 0.8 > 0.4 > shares["encode_batch"], shares
assert shares["decode"] > 0.8 > 0.4 > shares["decode_batch"], shares
PY
