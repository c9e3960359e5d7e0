#!/usr/bin/env bash
# Asked: which ids does a folder with a sentencepiece tokenizer.model alone have, when config.json says model_type mistral
# and tokenizer_config.json says LlamaTokenizer?
# Version: transformers 5.23.0 and 5.24.0, sentencepiece 0.2.1.
# Behaviour: the two releases give different ids for the same text. 5.23.0 leaves out the dummy prefix that the model
# file asks for (add_dummy_prefix) at the start of a text; 5.24.0 has it, as sentencepiece itself. No warning in either.
# Output seen (2026-11-29): 'Hello world' -> ['<s>', 'Hello', '▁world'] in 5.23.0, ['<s>', '▁Hello', '▁world'] in 5.24.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$folder/train"
"$folder/train/bin/pip" install --quiet --disable-pip-version-check sentencepiece==0.2.1
"$folder/train/bin/python" - "$folder" <<'PY'
import json
import os
import sys

import sentencepiece

model = os.path.join(sys.argv[1], "model")
os.mkdir(model)
words = ["Hello", "world", "the", "of", "and", "low", "hell", "or", "word"]
sentences = [" ".join(words[i % 9] for i in range(j, j + 6)) for j in range(200)]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_prefix=os.path.join(model, "tokenizer"),
    model_type="bpe",
    vocab_size=320,
    byte_fallback=True,
    add_dummy_prefix=True,
    hard_vocab_limit=False,
    minloglevel=2,
)
with open(os.path.join(model, "config.json"), "w") as file:
    json.dump({"model_type": "mistral"}, file)
with open(os.path.join(model, "tokenizer_config.json"), "w") as file:
    json.dump({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, file)
processor = sentencepiece.SentencePieceProcessor(os.path.join(model, "tokenizer.model"))
print("sentencepiece 0.2.1:", processor.encode("Hello world", out_type=str))
PY
for version in 5.23.0 5.24.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" sentencepiece==0.2.1 protobuf==6.33.5
    "$folder/$version/bin/python" - "$folder/model" <<'PY' | tee "$folder/$version.txt"
import sys

import transformers

tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
for text in ("Hello world", " Hello"):
    print(repr(text), tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids), sep=" -> ")
PY
    echo "(transformers $version)"
done
if cmp -s "$folder/5.23.0.txt" "$folder/5.24.0.txt"; then
    echo "both releases agree: the behaviour has changed" >&2
    exit 1
fi
grep -q "'Hello world' -> .*'▁Hello', '▁world'" "$folder/5.24.0.txt"
