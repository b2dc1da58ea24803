"""The carrier simulator: an SMSC that behaves, and misbehaves on command. For development, tests and demonstrations; real sockets, real SMPP.

- `config`: the account, and every misbehaviour as an option, from TOML, the command line, or HTTP at run time.
- `server`: accepts sessions and submits; `receipts` sends receipts and redelivers them until they are acknowledged.
- `outcome` decides what becomes of a part: by the recipient's last digits, else by weights. `ids` writes ids in every carrier's way.
- `journal` remembers every accepted part before it is answered, so that a loss test can count, and a restarted carrier goes on.
- `http`: statistics, behaviour, injected messages.
"""

from controlplane.carrier.config import CarrierConfig, load_config
from controlplane.carrier.run import Carrier

__all__ = ["Carrier", "CarrierConfig", "load_config"]
