"""Ratios of ours to the peers', round by round, and their medians."""

from statistics import median

from subjects import COMPARISONS


def figures_of(results: dict, case: str, subject: str) -> dict[int, float]:
    """Tokens a second by round."""
    taken = (one for one in results["figures"] if (one["case"], one["subject"]) == (case, subject))
    return {one["round"]: one["tokens_per_second"] for one in taken}


def summary(results: dict) -> dict:
    """One row a case and comparison; only rounds in which both were measured count."""
    rows = []
    for comparison in results["comparisons"]:
        ours, peer = COMPARISONS[comparison]
        for case in dict.fromkeys(one["case"] for one in results["figures"]):
            left, right = figures_of(results, case, ours), figures_of(results, case, peer)
            rounds = sorted(left.keys() & right.keys())
            if not rounds:
                continue
            ratios = [left[at] / right[at] for at in rounds]
            rows.append(
                dict(
                    comparison=comparison,
                    case=case,
                    rounds=len(rounds),
                    ours=median(left[at] for at in rounds),
                    peer=median(right[at] for at in rounds),
                    ratios=ratios,
                    ratio=median(ratios),
                )
            )
    return {"rows": rows, "batch_gain": batch_gains(results)}


def batch_gains(results: dict) -> dict[str, float]:
    """Each engine's largest batch over its smallest: medians of the ratio within a round."""
    decodes = sorted({one["case"] for one in results["figures"] if one["case"].startswith("decode")}, key=batch_of)
    gains = {}
    for subject in dict.fromkeys(one["subject"] for one in results["figures"]):
        if len(decodes) > 1:
            least, most = figures_of(results, decodes[0], subject), figures_of(results, decodes[-1], subject)
            if rounds := least.keys() & most.keys():
                gains[subject] = median(most[at] / least[at] for at in rounds)
    return gains


def batch_of(case: str) -> int:
    return int(case.split()[1])


def as_text(results: dict) -> str:
    machine, made = results["machine"], summary(results)
    lines = [
        f"{results['shape']} shape, {results['prompt_tokens']} prompt and {results['output_tokens']} output tokens, "
        f"{machine['threads']} threads of {machine['cpu']}, {'quiet' if machine['quiet'] else 'NOT QUIET'} at the start",
        f"{'against':<20} {'case':<12} {'rounds':>6} {'ours':>8} {'peer':>8} {'ratio':>6}   ratio of each round",
    ]
    for row in made["rows"]:
        each = " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        lines.append(
            f"{row['comparison']:<20} {row['case']:<12} {row['rounds']:>6} {row['ours']:>8.1f} {row['peer']:>8.1f} "
            f"{row['ratio']:>6.2f}   {each}"
        )
    if made["batch_gain"]:
        gains = ", ".join(f"{subject} {gain:.1f}" for subject, gain in made["batch_gain"].items())
        lines.append(f"largest batch over smallest: {gains}")
    busy = max(results["busy_before_round"], default=0.0)
    lines.append(f"others used up to {busy:.0%} of the machine between rounds")
    lines += [f"{subject} was left out: {why}" for subject, why in results["failures"].items()]
    return "\n".join(lines)
