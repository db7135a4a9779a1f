#!/usr/bin/env python3
"""Reads what critest.sh has written and judges it: a table of every spec's verdict for each handler, what was not passed and why.

usage: critest.py EXCEPTIONS REPORT HANDLER…

Fails if a handler does not pass a spec that is no exception, or that the peer (the last of several handlers) passes, and if a
report is missing or not whole. An exception that passes is said, so that the file can be put right.
It must never take a spec that was not run for one that passed.
"""
import json
import re
import sys

VERDICTS = {"passed": "PASS", "skipped": "skip"}


class Run:
    """One handler's run: spec -> (verdict, seconds, reason), and what went wrong outside of the specs."""

    def __init__(self, path):
        self.specs, self.broken, self.seconds, self.focus = {}, [], 0.0, []
        try:
            with open(path) as f:
                report = json.load(f)[0]
        except (OSError, ValueError) as error:
            self.broken.append(f"no report: {error}")
            return
        self.seconds = report["RunTime"] / 1e9
        self.focus, self.skip = (report["SuiteConfig"].get(key) or [] for key in ("FocusStrings", "SkipStrings"))
        for spec in report["SpecReports"]:
            self.add(spec)
        self.broken += report.get("SpecialSuiteFailureReasons") or []
        if not report["SuiteSucceeded"] and not self.broken and "FAIL" not in (verdict for verdict, _, _ in self.specs.values()):
            self.broken.append("the suite failed, none of its specs did")

    def add(self, spec):
        name = " ".join([*(spec.get("ContainerHierarchyTexts") or []), spec["LeafNodeText"]])
        reason = " ".join(spec.get("Failure", {}).get("Message", "").split())
        verdict = VERDICTS.get(spec["State"], "FAIL")
        if spec["LeafNodeType"] != "It":
            if verdict == "FAIL":
                self.broken.append(f"{spec['LeafNodeType']}: {reason}")
            return
        # What no focus asks for is reported as skipped, without a reason; so is what came after the end of an interrupted suite.
        if verdict == "skip" and not reason:
            if not self.asked_for(name):
                return
            verdict, reason = "FAIL", "was not run"
        name = name.removeprefix("[k8s.io] ")
        if self.specs.get(name, ("PASS",))[0] == "PASS":
            self.specs[name] = verdict, spec.get("RunTime", 0) / 1e9, reason

    def asked_for(self, name):
        def found(patterns):
            return any(re.search(pattern, name) for pattern in patterns)

        return not found(self.skip) and (not self.focus or found(self.focus))

    def verdict(self, name):
        return self.specs.get(name, ("none", 0, "there is no such spec in this run"))

    def count(self, verdict):
        return sum(1 for one, _, _ in self.specs.values() if one == verdict)

    def write(self, path):
        with open(path, "w") as f:
            for name, (verdict, seconds, reason) in sorted(self.specs.items(), key=lambda item: (item[1][0], item[0])):
                f.write(f"{verdict} {seconds:5.1f} s  {name}" + (f": {reason}" if reason else "") + "\n")


def read_exceptions(path):
    """A line is `SPEC # REASON`; a line that begins with # is a remark."""
    with open(path) as f:
        lines = [line.strip() for line in f if line.strip() and not line.startswith("#")]
    for line in lines:
        if " # " not in line:
            sys.exit(f"critest.py: {path}: no reason: {line}")
    return {spec.strip(): reason.strip() for spec, _, reason in (line.partition(" # ") for line in lines)}


def judge(runs, handlers, exceptions):
    """What is wrong, and what is to be said beside it."""
    wrong, said = [], []
    peer = handlers[-1] if len(handlers) > 1 else None
    names = sorted({name for run in runs.values() for name in run.specs})
    for handler in handlers:
        run = runs[handler]
        wrong += [f"{handler}: {reason}" for reason in run.broken]
        for name in names:
            verdict, _, reason = run.verdict(name)
            if verdict == "PASS":
                if name in exceptions and handler != peer:
                    said.append(f"{handler} passes, so it is no exception any more: {name}")
            elif handler == peer:
                if name not in exceptions:
                    said.append(f"{handler}, the peer, does not pass: {name}: {reason}")
            elif peer and runs[peer].verdict(name)[0] == "PASS":
                wrong.append(f"{handler} has to pass what {peer} passes: {name}: {reason}")
            elif name not in exceptions:
                wrong.append(f"{handler} has to pass: {name}: {reason}")
    for name, why in exceptions.items():
        if any(runs[handler].verdict(name)[0] in ("FAIL", "skip") for handler in handlers if handler != peer):
            said.append(f"an exception: {name}: {why}")
        elif name not in names and not any(run.focus or run.broken for run in runs.values()):
            said.append(f"an exception, though there is no such spec: {name}")
    return names, wrong, said


def main(exceptions, report, *handlers):
    runs = {}
    for handler in handlers:
        runs[handler] = Run(f"{report}-{handler}.json")
        runs[handler].write(f"{report}-{handler}.list")
    names, wrong, said = judge(runs, handlers, read_exceptions(exceptions))
    width = max(map(len, (*handlers, *VERDICTS.values()))) + 2
    print("".join(handler.ljust(width) for handler in handlers) + "spec")
    for name in names:
        print("".join(runs[handler].verdict(name)[0].ljust(width) for handler in handlers) + name)
    for title, lines in (("To know:", said), ("Wrong:", wrong)):
        if lines:
            print("\n" + "\n  ".join([title, *(line[:400] for line in sorted(lines))]))
    print()
    for handler, run in runs.items():
        print(f"{handler.ljust(width)}{run.count('PASS')} passed, {run.count('FAIL')} failed, {run.count('skip')} skipped of "
              f"{len(run.specs)}, in {run.seconds:.0f} s")
    print("critest: " + (f"{len(wrong)} wrong" if wrong else "as it has to be"))
    return 1 if wrong or not names else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
