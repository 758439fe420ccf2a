#!/usr/bin/env python3
"""Prove that the exported ONNX graph computes the same vectors as the weights it came from.

The reference is a BERT forward pass written in numpy with float64, which shares no code
with the exporter: what one of them gets wrong, the other does not repeat. Both sides end
in mean pooling and unit length, and the largest difference of any component decides.

    python verify_onnx.py --model MODEL_FOLDER --weights SOURCE_FOLDER
"""

import argparse
import json
import math
import pathlib
import struct
import sys

import numpy as np
import onnxruntime
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "all-MiniLM-L6-v2"
TOKENS_MAX = 256
BATCH_ROWS = 8
DIFFERENCE_MAX = 1e-4

LONG_PROSE = (
    "The migration began on a Tuesday, long before anyone had agreed on what the new ledger "
    "should be called. Every invoice older than ninety days was copied twice, compared, and "
    "then moved behind a read-only door; the few that differed were printed and argued over. "
)
LONG_MIXED = "Größe 42, naïve café, 第三章, строка №7, x = f(y) + 0.5; " * 24
LONG_CODE = "for (let i = 0; i < rows.length; i++) { total += rows[i].amount ?? 0; }\n" * 20

SENTENCES = [
    # One word, one letter, nothing much.
    "refund",
    "a",
    "Antidisestablishmentarianism",
    "OK",
    # Questions of one line.
    "How do I reset my password?",
    "How do I change the email address of my account?",
    "What is your refund policy for annual plans?",
    "Can two people edit the same event at once?",
    "is there a free trial",
    "cancel subscription now pls",
    "I did not receive the confirmation message.",
    "I received the confirmation message twice.",
    "Turn notifications on.",
    "Turn notifications off.",
    "Convert 100 USD to EUR.",
    "Convert 100 EUR to USD.",
    # Middling prose.
    "The quick brown fox jumps over the lazy dog while the band plays a slow waltz.",
    "Water boils at a lower temperature in the mountains, because the air presses less on it.",
    "She sold the boat, bought a smaller one, sold that too, and took up gardening instead.",
    "Our office is closed on public holidays; urgent matters go to the number on the door.",
    "THE MEETING HAS BEEN MOVED TO THURSDAY AT HALF PAST NINE IN THE LARGE ROOM.",
    "the the the the the the the the the the the the",
    "To be, or not to be, that is the question: whether it is nobler to wait or to retry.",
    # Digits and units.
    "42",
    "3.14159265358979",
    "2024-02-29T23:59:60Z",
    "+49 (0)30 901820, ext. 7",
    "Order 10000234 ships 12 boxes of 0.75 l at 18,90 each, 5% off from 100 boxes.",
    "192.168.0.1:8080/health?full=1",
    # Punctuation alone.
    "?!",
    "...",
    "--- *** ___ ### @@@",
    "()[]{}<>",
    # Other scripts.
    "如何重置我的密码？",
    "退款需要多长时间才能到账？我上周已经提交了申请。",
    "Как восстановить доступ к учётной записи?",
    "Сколько времени занимает возврат средств после отмены заказа?",
    "パスワードを忘れた場合はどうすればよいですか。",
    "請求書の宛名を変更したいのですが、手続きを教えてください。",
    "비밀번호를 어떻게 재설정하나요?",
    "كيف يمكنني إعادة تعيين كلمة المرور؟",
    "Πώς μπορώ να αλλάξω το συνδρομητικό μου πρόγραμμα;",
    "मैं अपना पासवर्ड कैसे बदलूँ?",
    "איך מבטלים מנוי?",
    # Accents, ligatures, odd blanks, combining marks.
    "Crème brûlée, façade, jalapeño, Ærøskøbing, straße, ﬁne print",
    "e\u0301te\u0301 \u00a0 non-breaking\u2003blanks\u200bzero width",
    "\ttabs\n\nand line\r\nbreaks  everywhere \n",
    # Emoji.
    "🎉",
    "Great service 👍🏽👍🏽 but the app 💥 on my 📱 again 😭",
    # Code and markup.
    "SELECT id, total FROM invoices WHERE paid IS NULL ORDER BY due DESC LIMIT 10;",
    "fn main() -> Result<(), Error> { let x = foo(&mut bar)?; println!(\"{x:?}\"); Ok(()) }",
    "<p class=\"note\">Use <code>git rebase -i</code> with care &amp; a backup.</p>",
    "curl -sS -X POST -H 'Content-Type: application/json' -d '{\"on\": true}' localhost:9000/v1",
    # Tokens that look like the tokenizer's own, and words it has never seen.
    "[CLS] this is [MASK] not special [SEP] at all [PAD]",
    "xqzvkjw bltmrgpfq zzyzx qwfpgj",
    # Longer than the limit, each of another kind, so that truncation is covered too.
    LONG_PROSE * 8,
    LONG_MIXED,
    LONG_CODE,
    "word " * 300,
    # Near the limit without reaching it.
    LONG_PROSE * 3,
]


def load_weights(path):
    """Read a safetensors file as float64, without the exporter's reader."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
        start = file.tell()
        weights = {}
        for name, entry in header.items():
            if entry.get("dtype") == "F32":
                file.seek(start + entry["data_offsets"][0])
                flat = np.fromfile(file, dtype="<f4", count=math.prod(entry["shape"]))
                weights[name] = flat.reshape(entry["shape"]).astype(np.float64)
    return weights


class Erf:
    """erf for arrays: cubic Hermite interpolation between exact values, good to 1e-13."""

    STEPS = 1024
    LIMIT = 6.0

    def __init__(self):
        knots = np.arange(int(self.LIMIT * self.STEPS) + 2) / self.STEPS
        self.value = np.array([math.erf(x) for x in knots])
        self.slope = 2.0 / math.sqrt(math.pi) * np.exp(-knots * knots) / self.STEPS

    def __call__(self, x):
        scaled = np.minimum(np.abs(x), self.LIMIT) * self.STEPS
        index = scaled.astype(np.int64)
        t = scaled - index
        rest = 1.0 - t
        left = self.value[index] * (1.0 + 2.0 * t) + self.slope[index] * t
        right = self.value[index + 1] * (1.0 + 2.0 * rest) - self.slope[index + 1] * rest
        return np.sign(x) * (left * rest * rest + right * t * t)


class Reference:
    """BERT for one text at a time: no padding, hence no mask to get wrong."""

    def __init__(self, config, weights):
        self.config = config
        self.weights = weights
        self.erf = Erf()

    def dense(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x, name):
        centered = x - x.mean(axis=-1, keepdims=True)
        variance = (centered**2).mean(axis=-1, keepdims=True)
        unit = centered / np.sqrt(variance + self.config["layer_norm_eps"])
        return unit * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, x, name):
        heads = self.config["num_attention_heads"]
        query, key, value = (
            np.stack(np.split(self.dense(x, f"{name}.self.{part}"), heads, axis=1))
            for part in ("query", "key", "value")
        )
        scores = np.einsum("hqd,hkd->hqk", query, key) / math.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.concatenate(list(scores @ value), axis=1)
        return self.norm(x + self.dense(mixed, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def embed(self, ids):
        """The unit vector of one text, given its token ids."""
        table = self.weights
        x = (
            table["embeddings.word_embeddings.weight"][ids]
            + table["embeddings.position_embeddings.weight"][: len(ids)]
            + table["embeddings.token_type_embeddings.weight"][0]
        )
        x = self.norm(x, "embeddings.LayerNorm")
        for index in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            x = self.attention(x, f"{layer}.attention")
            wide = self.dense(x, f"{layer}.intermediate.dense")
            wide = 0.5 * wide * (1.0 + self.erf(wide / math.sqrt(2.0)))
            narrow = self.dense(wide, f"{layer}.output.dense")
            x = self.norm(x + narrow, f"{layer}.output.LayerNorm")
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)


def embed_batch(session, rows):
    """Unit vectors from the exported graph for rows of token ids, padded to the longest."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = session.run(["last_hidden_state"], feeds)
    counted = mask[:, :, None].astype(np.float32)
    mean = (hidden * counted).sum(axis=1) / counted.sum(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def tokenize(path):
    """Token ids of every sentence, cut at the limit and never padded."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # The file that comes with the weights asks for fixed padding and a shorter limit.
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    return [encoding.ids for encoding in tokenizer.encode_batch(SENTENCES)]


def main():
    parser = argparse.ArgumentParser(description="Compare the exported graph with its weights.")
    assets = ROOT / ".refrain" / "assets"
    parser.add_argument("--model", type=pathlib.Path, default=assets / "models" / NAME)
    parser.add_argument("--weights", type=pathlib.Path, default=assets / "src" / NAME)
    arguments = parser.parse_args()

    config = json.loads((arguments.weights / "config.json").read_text(encoding="utf-8"))
    rows = tokenize(arguments.model / "tokenizer.json")
    reference = Reference(config, load_weights(arguments.weights / "model.safetensors"))
    expected = np.stack([reference.embed(row) for row in rows])

    session = onnxruntime.InferenceSession(
        str(arguments.model / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    single = np.concatenate([embed_batch(session, [row]) for row in rows])
    # A stride through the list puts short and long rows into the same batch.
    batched = np.empty_like(single)
    stride = math.ceil(len(rows) / BATCH_ROWS)
    for start in range(stride):
        members = range(start, len(rows), stride)
        batched[list(members)] = embed_batch(session, [rows[index] for index in members])

    alone = float(np.abs(single - expected).max())
    in_batch = float(np.abs(batched - expected).max())
    truncated = sum(len(row) == TOKENS_MAX for row in rows)
    print(
        f"{len(rows)} texts of {min(map(len, rows))} to {max(map(len, rows))} tokens, "
        f"{truncated} of them cut; largest difference {alone:.2e} alone, "
        f"{in_batch:.2e} in batches of mixed length (allowed: {DIFFERENCE_MAX:.0e})"
    )
    # Written so that a NaN fails too.
    if not max(alone, in_batch) <= DIFFERENCE_MAX:
        sys.exit("the exported graph does not compute what its weights say; do not use it")


if __name__ == "__main__":
    main()
