"""The campaign `rq3-parrot` on an emulated GPU host: one engine, alone and behind Parrot.

    python -m benchmarks.parrot [--quick] [--repeats N] [--out FOLDER]

$PARROT_SRC (a checkout of microsoft/ParrotServe) and $PARROT_PYTHON (a Python that has what it needs) let the real
ServeCore take part; without them a stand-in does, and the report says so. The campaign's folder has the report, its
figures and the trials; `processes.json` says how much of a core ServeCore and the gateway took on this very machine.
All joules are emulated: a model's figures, not a machine's.
"""

import argparse
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.parrot_rig import MODELS, Rig, Source, rig
from benchmarks.rehearsal import GPU, MODEL
from loadgen.campaign.definition import Campaign, load
from loadgen.campaign.folder import Folder
from loadgen.campaign.grid import Trial
from loadgen.campaign.machine import Machine, OverHttp
from loadgen.campaign.run import Step, carry_out
from loadgen.record import Result
from loadgen.report.page import write

CAMPAIGN = "rq3-parrot"


class OnRig:
    """Drives trials over HTTP; the batch size is the emulated engine's, which is started anew for another."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def __call__(self, campaign: Campaign, trial: Trial) -> Result:
        batch = int(str(trial.cell.get("max_num_seqs")))
        self.rig.restart_engine(batch)
        return OverHttp(machine(self.rig.url, self.rig.core, batch))(campaign, trial)


def machine(url: str, core: str, batch: int) -> Machine:
    """The rig as a campaign's machine; `core` says which ServeCore it is. Answers have their full length."""
    fixed = {"gpu": GPU, "model": MODEL, "enable_prefix_caching": True, "gpu_memory_utilization": 0.9}
    facts = {**fixed, "max_num_batched_tokens": 8192, "max_num_seqs": batch}
    about = {"ServeCore": core, "engine": "joulegate emulate"}
    return Machine.model_validate(
        {"url": url, "models": MODELS, "body": {"ignore_eos": True}, "is": facts, "about": about}
    )


def main(quick: bool, repeats: int | None, out: Path) -> None:
    campaign = load(CAMPAIGN)
    if quick:
        campaign = ends(campaign.quickened())
    if repeats is not None:
        campaign = campaign.model_copy(update={"repeats": repeats})
    folder = Folder(out, campaign, "HTTP")
    with TemporaryDirectory() as scratch, rig(Path(scratch), Source.of_environment()) as running:
        print("ServeCore:", running.core, flush=True)
        carry_out(campaign, folder, OnRig(running), said)
        (out / "processes.json").write_text(json.dumps({"ServeCore": running.core, "cores": running.cpu_shares()}))
    print(write(campaign, folder)[0])


def ends(campaign: Campaign) -> Campaign:
    """The same with the first and the last value of each knob alone."""
    sweeps = {
        name: sweep.model_copy(update={"knobs": {knob: (one[0], one[-1]) for knob, one in sweep.knobs.items()}})
        for name, sweep in campaign.sweeps.items()
    }
    return campaign.model_copy(update={"sweeps": sweeps})


def said(step: Step) -> None:
    state = step.refusal.reason if step.refusal else "valid" if step.valid else "invalid"
    print(f"{step.done}/{step.of} {step.trial.cell.key}, repeat {step.trial.repeat}: {state}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat of each sweep's ends")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--out", type=Path, default=Path(f"joulegate-{CAMPAIGN}"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    main(options.quick, options.repeats, options.out)
