"""Where does it look? A classifier that pools all recurrent states by learned attention.

The task is that of text_classifier.py: which of 28 languages is it? Every state of a bidirectional
GRU gets a learned score, a softmax over the true steps turns the scores into weights, and the
weighted sum of the states goes to the output. Compared with the last state and the mean state.

  python examples/attention.py                       train, evaluate, draw the attention
  python examples/attention.py --predict "où es-tu"  the answer, and where the model looked
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import torch
from common import checkpoint, classifying, languages, plots
from common.classifying import evaluate, guesses, predict
from common.cli import Parser, launch, positive_float
from common.implementation import layers
from common.languages import LANGUAGES, Alphabet, Dataset, Texts
from common.metrics import Scores
from common.report import Report, say, table
from common.training import Run
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

NAME = "attention"
NOISE = 0.03  # of macro-F1 between two seeds
POOLINGS = ("last", "mean", "attention")


class PoolingClassifier(nn.Module):
    """Embedding [E], bidirectional GRU [H], states pooled over time [2H], output."""

    def __init__(
        self, layers: ModuleType, vocabulary: int, embedding: int, hidden: int, pooling: str
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=languages.PADDING)
        self.dropout = nn.Dropout(0.2)
        self.rnn = layers.GRU(embedding, hidden, batch_first=True, bidirectional=True)
        if pooling == "attention":
            self.score = nn.Sequential(
                nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False)
            )
        self.output = nn.Linear(2 * hidden, len(LANGUAGES))

    def states(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, T], lengths [B] -> every step's state [B, T, 2H], the last ones [B, 2H]."""
        x = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        out, h = self.rnn(packed)
        states, _ = pad_packed_sequence(out, batch_first=True, total_length=tokens.shape[1])
        return states, torch.cat((h[0], h[1]), dim=1)

    def weights(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Each step's share [B, T] in the pooled state: sums to 1, and is 0 on padding."""
        true = torch.arange(states.shape[1])[None] < lengths[:, None]
        true = true.to(states.device)
        if self.pooling == "mean":
            return true / true.sum(1, keepdim=True)
        return self.score(states)[..., 0].masked_fill(~true, -torch.inf).softmax(1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens [B, T], lengths [B] on the CPU -> scores of the classes [B, C]."""
        states, pooled = self.states(tokens, lengths)
        if self.pooling != "last":
            pooled = (self.weights(states, lengths)[..., None] * states).sum(1)
        return self.output(self.dropout(pooled))


def train(args: Namespace, alphabet: Alphabet, dataset: Dataset, pooling: str) -> list[Run]:
    return classifying.train(
        args,
        lambda source: PoolingClassifier(source, len(alphabet), args.embedding, args.hidden, pooling),
        dataset,
        pooling,
    )


def load(path: Path, args: Namespace) -> tuple[PoolingClassifier, Alphabet]:
    """The trained attention classifier from a checkpoint."""
    payload = checkpoint.load(path, NAME, args)
    config, alphabet = payload["config"], Alphabet(**payload["alphabet"])
    model = PoolingClassifier(
        layers(args.impls[-1]), len(alphabet), config["embedding"], config["hidden"], "attention"
    )
    checkpoint.restore(path, model, checkpoint.weights(payload, args.impls))
    return model.eval().to(args.world.device), alphabet


@torch.inference_mode()
def attended(model: PoolingClassifier, dataset: Dataset, indices: Tensor) -> Tensor:
    """The attention weights [B, T] over some texts."""
    batch = dataset.batch(indices)
    states, _ = model.states(batch.tokens, batch.lengths)
    return model.weights(states, batch.lengths).cpu()


def answer(args: Namespace) -> int:
    """Prints the language of a text, and under each character a bar for its attention."""
    model, alphabet = load(args.checkpoint, args)
    text = alphabet.read(args.predict)
    one = Dataset(Texts([text], [0]), alphabet, args.world.device)
    weights = attended(model, one, torch.tensor([0]))[0]
    bars = "".join(" ▁▂▃▄▅▆▇█"[round(8 * share)] for share in (weights / weights.max()).tolist())
    say(f"{text}: {guesses(predict(model, one)[0])}\n{text}\n{bars}")
    return 0


def draw(texts: list[str], titles: list[str], weights: Tensor, path: Path) -> None:
    """Texts as rows of characters, with the attention as the background color."""
    longest = max(len(text) for text in texts)
    figure, axes = plt.subplots(figsize=(max(6, 0.24 * longest + 1.5), 0.36 * len(texts) + 0.8))
    axes.imshow(weights[:, :longest], cmap="Oranges", vmin=0, vmax=0.6, aspect="auto")
    for row, text in enumerate(texts):
        for column, character in enumerate(text):
            axes.text(column, row, character, ha="center", va="center", fontsize=9)
    axes.set_yticks(range(len(texts)), titles)
    axes.set_xticks([])
    axes.set_title("Attention over the characters: truth → predicted")
    plots.save(figure, path)


def draw_some(model: PoolingClassifier, dataset: Dataset, texts: Texts, path: Path) -> None:
    """The attention over one longer text in each of a few languages that the plot's font has."""
    chosen = []
    for language in ("de", "fr", "es", "pt", "pl", "tr", "sv", "ru", "uk", "el"):
        own = [i for i, label in enumerate(texts.labels) if LANGUAGES[label] == language]
        fitting = [i for i in own if 24 <= len(texts.texts[i]) <= 40]
        chosen.append((fitting or own)[0])
    indices = torch.tensor(chosen)
    predicted = predict(model, dataset)[indices].argmax(1).tolist()
    pairs = zip(chosen, predicted, strict=True)
    titles = [f"{LANGUAGES[texts.labels[i]]} → {LANGUAGES[said]}" for i, said in pairs]
    draw([texts.texts[i] for i in chosen], titles, attended(model, dataset, indices), path)


def main() -> int:
    parser = Parser(NAME, __doc__)
    parser.size("--hidden", 128, 48, "hidden units of each direction")
    parser.size("--embedding", 64, 32, "size of a character's embedding")
    parser.size("--epochs", 3, 2, "times through the data")
    parser.size("--batch", 64, 64, "texts in a batch")
    parser.size("--lr", 4e-3, 8e-3, "learning rate", positive_float)
    parser.add_argument("--predict", metavar="TEXT", help="which language TEXT is in; no training")
    args = parser.parse()
    if args.predict is not None:
        return answer(args)

    data = classifying.data(args)
    alphabet, test = data.alphabet, data.test
    say(f"{len(data.texts.texts)} texts to train on, {len(data.test_texts.texts)} others to test")

    results: dict[str, list[Scores]] = {}
    rows = []
    for pooling in POOLINGS:
        runs = train(args, alphabet, data.train, pooling)
        results[pooling] = [evaluate(each.model, test)[0] for each in runs]
        for each, score in zip(runs, results[pooling], strict=True):
            rows.append((f"{pooling}, {each.impl}", score.accuracy, score.macro_f1))
    say("\n" + table(("pooling", "accuracy", "F1 (macro)"), rows))

    checkpoint.save(
        args.checkpoint,
        NAME,
        {"hidden": args.hidden, "embedding": args.embedding},
        alphabet=alphabet.saved(),
        runs={each.impl: each.saved() for each in runs},
    )
    if args.world.rank > 0:
        return 0
    model, _ = load(args.checkpoint, args)
    score, _ = evaluate(model, test)
    draw_some(model, test, data.test_texts, args.out / f"{NAME}.png")
    plots.losses(runs, args.out / f"{NAME}_loss.png", "Attention classifier")
    mixed = torch.arange(64)
    weights = attended(model, test, mixed)
    beyond = torch.arange(weights.shape[1])[None] >= test.lengths[mixed][:, None]

    report = Report(NAME, args)
    for pooling in POOLINGS:
        report.figures[f"macro-F1 {pooling}"] = results[pooling][-1].macro_f1
    report.expect("attention on padding", weights[beyond].sum().item(), most=0.0)
    report.expect("macro-F1 of the reloaded checkpoint", score.macro_f1, least=0.5 if args.quick else 0.8)
    report.same_start(runs)
    report.same_in_both("macro-F1", [s.macro_f1 for s in results["attention"]], NOISE)
    return report.finish(runs)


if __name__ == "__main__":
    launch(main)
