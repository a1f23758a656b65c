"""Evaluate with lmms-eval: makes an lmms-eval task of questions in the format of vl2 shapes or vl2 train.

pip install "lmms-eval[openai]==0.7.3" decord "filelock<3.21"
python examples/lmms_eval_run.py benchmarks/shapes/held_out.json OUT [http://localhost:8080/v1]
"""

import json
import os
import subprocess
import sys
from pathlib import Path

TASK = """\
task: questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function visual.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
VISUAL = "def visual(doc):\n    return [doc['video']]\n"

questions, out, *address = sys.argv[1:]
source, task = Path(questions).resolve(), Path(out).resolve() / "task"
task.mkdir(parents=True, exist_ok=True)
rows = []
for row in json.loads(source.read_text("utf-8")):
    question, answer = (turn["value"] for turn in row["conversations"][:2])
    rows.append(
        {
            "video": str(source.parent / row["video"]),
            "question": question.removeprefix("<video>\n"),
            "answer": answer,
        }
    )
(task / "questions.json").write_text(json.dumps(rows))
(task / "visual.py").write_text(VISUAL)
(task / "questions.yaml").write_text(TASK.format(data=task / "questions.json"))
model = {
    "model_version": "videollama2",
    "base_url": (address or ["http://localhost:8080/v1"])[0],
    "api_key": "none",
    "num_concurrent": 4,
    "timeout": 60,
}
command = [sys.executable, "-m", "lmms_eval", "eval", "--model", "openai"]
command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
command += ["--include_path", str(task), "--tasks", "questions", "--output_path", out, "--log_samples"]
sys.exit(subprocess.run(command, env=os.environ | {"HF_DATASETS_OFFLINE": "1"}).returncode)
