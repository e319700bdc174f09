from models.judging.compare import CONFIDENCE, mcnemar_p
from models.judging.evaluate import Predictions


def no_class_gets_worse(challenger: Predictions, champion: Predictions | None) -> str | None:
    """Refuse a challenger that is surely worse in a class, whatever it is better in.

    Surely: by McNemar's test of the images of the class, at a level that is divided by the number of classes.
    """
    worse = []
    for index, name in enumerate(challenger.classes if champion else ()):
        assert champion
        before, now = (one.hits[one.labels == index] for one in (champion, challenger))
        won, lost = int((now & ~before).sum()), int((before & ~now).sum())
        if lost > won and mcnemar_p(won, lost) < (1 - CONFIDENCE) / len(challenger.classes):
            worse.append(f"'{name}' {before.mean():.4f} -> {now.mean():.4f}")
    return f"surely less accurate than the champion: {', '.join(worse)}" if worse else None
