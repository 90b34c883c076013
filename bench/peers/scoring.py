"""What lm-evaluation-harness, rouge_score and Python make of tricky texts and numbers, for test/evaluate/scoring.test.ts.

  python bench/peers/scoring.py test/fixtures/scoring.json
"""

import json
import random
import re
import sys

from lm_eval.api.metrics import exact_match_fn, pooled_sample_stderr
from lm_eval.filters.extraction import RegexFilter
from lm_eval.tasks.hellaswag.utils import preprocess
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from rouge_score.rouge_scorer import RougeScorer

ANSWERS = [
    " It is 5 + 4 = 9.\n#### 9",
    " #### 1,234.50. and then #### 7",
    "The answer is $18.",
    " -3 or -4,",
    "no number at all",
    "#### twelve",
    " 12 apples, 3 pears... 1.5.",
    "####  5",
    " $1,000,000 #### $1,000,000",
    "#### -7.",
    ".",
    ", 3 .",
    "The price: $",
]
GOLD = ["Some steps <<5+4=9>>9.\n#### 9", "x\n#### 1,234.50", "#### 18", "#### -4", "a\n#### 1.5", "#### 1000000", "#### -7"]
SUMMARIES = [
    ("A child has found the ball.", "The ball was found by a child, a CHILD."),
    ("", "words"),
    ("Zürich's naïve café №5", "zurich s na ve caf 5"),
    ("one two three four five", "five four three two one"),
    ("a b c d e f g", "a x b y c z d"),
    ("co-operate 1,000 times", "cooperate 1 000 times"),
]
TEXTS = [" \t a b \n", "\x1c\x1d x \x85", "\ufeff y \ufeff", "\u00a0\u3000z\u2009", "éCOLE ÉTÉ", "ǆungla", "ŉ", "ß STRASSE", "ﬁre", "", "İSTANBUL", "ΑΣ ΟΔΟΣ"]
PAGES = [
    " = A = \n \n In 19 @.@ 5 it had 1 @,@ 000 well @-@ known \" red \" ( so called ) ones ; [ old ] ' yes ' . N : 5 ! The dogs ' \n",
    " = = B = = \n \n = = = C = = = \n \n = = = = D = = = = \n 5 ° C , it 's { so } ? \n",
]
ENDINGS = [" a [title] b [x] [y\nz]  c   d", "[header] How [title]  Start", "plain"]


def main():
    strict, flexible = RegexFilter(r"#### (\-?[0-9\.\,]+)"), RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)
    ignored = {"ignore_case": True, "ignore_punctuation": False, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}

    def judge(found, gold):
        return float(exact_match_fn(predictions=[found], references=[gold], **ignored)["exact_match"])

    rouge = RougeScorer(["rougeL"])
    generator = random.Random(1234)
    samples = []
    for size, count in ((7473, 5), (30, 25), (120, 10), (85, 6), (86, 6), (21, 5), (22, 5), (1, 1)):
        samples.append({"size": size, "count": count, "drawn": generator.sample(range(size), count)})
    json.dump(
        {
            "gsm8k": [
                {
                    "text": text,
                    "gold": gold,
                    "scores": [judge(f.apply([[text]], [{}])[0][0], gold) for f in (strict, flexible)],
                }
                for text in ANSWERS
                for gold in GOLD
            ],
            "rouge": [
                {"reference": a, "candidate": b, "value": rouge.score(a, b)["rougeL"].fmeasure} for a, b in SUMMARIES
            ],
            "texts": [
                {
                    "text": text,
                    "strip": text.strip(),
                    "rstrip": text.rstrip(),
                    "capitalize": text.capitalize(),
                    "length": len(text),
                    "words": len(re.split(r"\s+", text)),
                }
                for text in TEXTS
            ],
            "pages": [{"page": page, "text": wikitext_detokenizer({"page": page})} for page in PAGES],
            "endings": [{"ending": ending, "text": preprocess(ending)} for ending in ENDINGS],
            "samples": samples,
            "choices": generator.choices(range(1000), k=5),
            "pooled": float(pooled_sample_stderr([0.05, 0.02, 0.1], [100, 300, 40])),
        },
        open(sys.argv[1], "w"),
        ensure_ascii=True,
        indent=1,
    )


if __name__ == "__main__":
    main()
