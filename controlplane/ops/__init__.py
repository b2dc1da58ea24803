"""Operations of a region: Ansible's playbooks, run from the operator's machine, with a journal, and messages that are counted through all of it.

- `desired` asks `infra` what is declared, and with which keys one gets there;
- `journal` is what a run wrote down: what was under way, and what is to be taken back;
- `canary` sends messages through the API during a run, and counts them;
- `runner` runs one playbook in a folder of its own, of which nothing stays;
- `operation` is one run from its beginning to its end, one at a time; its kinds are a table in `controlplane.domain.operations`;
- `reporting` tells the API how it goes, from what `spool` keeps of it; an API that is away stops nothing;
- `agent` runs what is asked for over the API.
"""
