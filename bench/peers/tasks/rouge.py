"""ROUGE-L of one summary with Google's rouge_score, for the task beside this file."""

from rouge_score.rouge_scorer import RougeScorer

SCORER = RougeScorer(["rougeL"])


def rouge_l(references, predictions):
    return SCORER.score(references[0], predictions[0])["rougeL"].fmeasure
