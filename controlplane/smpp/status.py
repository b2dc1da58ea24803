"""command_status: SMPP 3.4 table 5-2, names, and a sentence that a human can use."""

from __future__ import annotations

__all__ = ["name", "sentence"]

ESME_ROK = 0x00
ESME_RINVMSGLEN = 0x01
ESME_RINVCMDLEN = 0x02
ESME_RINVCMDID = 0x03
ESME_RINVBNDSTS = 0x04
ESME_RALYBND = 0x05
ESME_RSYSERR = 0x08
ESME_RINVSRCADR = 0x0A
ESME_RINVDSTADR = 0x0B
ESME_RBINDFAIL = 0x0D
ESME_RINVPASWD = 0x0E
ESME_RINVSYSID = 0x0F
ESME_RMSGQFUL = 0x14
ESME_RSUBMITFAIL = 0x45
ESME_RTHROTTLED = 0x58
ESME_RX_T_APPN = 0x64
ESME_RX_P_APPN = 0x65
ESME_RINVOPTPARSTREAM = 0xC0
ESME_RINVPARLEN = 0xC2
ESME_RUNKNOWNERR = 0xFF

_TABLE = {
    0x00: ("ESME_ROK", "The carrier took it."),
    0x01: ("ESME_RINVMSGLEN", "The carrier says that the message's length is invalid."),
    0x02: ("ESME_RINVCMDLEN", "The carrier could not read the length of our PDU."),
    0x03: ("ESME_RINVCMDID", "The carrier does not know this command."),
    0x04: ("ESME_RINVBNDSTS", "The carrier does not accept this command in this kind of session."),
    0x05: ("ESME_RALYBND", "The account is bound already, as often as the carrier allows."),
    0x06: ("ESME_RINVPRTFLG", "The carrier refuses the priority."),
    0x07: ("ESME_RINVREGDLVFLG", "The carrier refuses the request for a receipt."),
    0x08: ("ESME_RSYSERR", "The carrier has trouble of its own."),
    0x0A: ("ESME_RINVSRCADR", "The carrier refuses this sender."),
    0x0B: ("ESME_RINVDSTADR", "The carrier says that the recipient's number is invalid."),
    0x0C: ("ESME_RINVMSGID", "The carrier does not know this message id."),
    0x0D: ("ESME_RBINDFAIL", "The carrier refused the bind."),
    0x0E: ("ESME_RINVPASWD", "The carrier says that the password is wrong."),
    0x0F: ("ESME_RINVSYSID", "The carrier does not know this system_id."),
    0x11: ("ESME_RCANCELFAIL", "The carrier could not cancel the message."),
    0x13: ("ESME_RREPLACEFAIL", "The carrier could not replace the message."),
    0x14: ("ESME_RMSGQFUL", "The carrier's queue is full."),
    0x15: ("ESME_RINVSERTYP", "The carrier refuses the service_type."),
    0x33: ("ESME_RINVNUMDESTS", "The carrier refuses the number of recipients."),
    0x34: ("ESME_RINVDLNAME", "The carrier does not know the distribution list."),
    0x40: ("ESME_RINVDESTFLAG", "The carrier refuses the destination flag."),
    0x42: ("ESME_RINVSUBREP", "The carrier refuses the request to replace."),
    0x43: ("ESME_RINVESMCLASS", "The carrier refuses the esm_class."),
    0x44: ("ESME_RCNTSUBDL", "The carrier cannot submit to the distribution list."),
    0x45: ("ESME_RSUBMITFAIL", "The carrier could not take the message."),
    0x48: ("ESME_RINVSRCTON", "The carrier refuses the sender's type of number."),
    0x49: ("ESME_RINVSRCNPI", "The carrier refuses the sender's numbering plan."),
    0x50: ("ESME_RINVDSTTON", "The carrier refuses the recipient's type of number."),
    0x51: ("ESME_RINVDSTNPI", "The carrier refuses the recipient's numbering plan."),
    0x53: ("ESME_RINVSYSTYP", "The carrier refuses the system_type."),
    0x54: ("ESME_RINVREPFLAG", "The carrier refuses replace_if_present."),
    0x55: ("ESME_RINVNUMMSGS", "The carrier refuses the number of messages."),
    0x58: ("ESME_RTHROTTLED", "The carrier asks us to send more slowly."),
    0x61: ("ESME_RINVSCHED", "The carrier refuses the scheduled time."),
    0x62: ("ESME_RINVEXPIRY", "The carrier refuses the validity period."),
    0x63: ("ESME_RINVDFTMSGID", "The carrier does not know the predefined message."),
    0x64: ("ESME_RX_T_APPN", "Refused for now by the receiving application."),
    0x65: ("ESME_RX_P_APPN", "Refused for good by the receiving application."),
    0x66: ("ESME_RX_R_APPN", "Rejected by the receiving application."),
    0x67: ("ESME_RQUERYFAIL", "The carrier could not answer the query."),
    0xC0: ("ESME_RINVOPTPARSTREAM", "The optional parameters could not be read."),
    0xC1: ("ESME_ROPTPARNOTALLWD", "An optional parameter is not allowed here."),
    0xC2: ("ESME_RINVPARLEN", "A parameter has an invalid length."),
    0xC3: ("ESME_RMISSINGOPTPARAM", "An optional parameter is missing."),
    0xC4: ("ESME_RINVOPTPARAMVAL", "An optional parameter has an invalid value."),
    0xFE: ("ESME_RDELIVERYFAILURE", "The carrier could not deliver."),
    0xFF: ("ESME_RUNKNOWNERR", "The carrier reports an unknown error."),
}


def name(command_status: int) -> str:
    """`ESME_…`, or `0x…` for what the specification does not name. 0x400 to 0x4FF are the vendors'."""
    known = _TABLE.get(command_status)
    if known:
        return known[0]
    return f"vendor 0x{command_status:03X}" if 0x400 <= command_status <= 0x4FF else f"0x{command_status:08X}"


def sentence(command_status: int) -> str:
    """What it means, in words."""
    known = _TABLE.get(command_status)
    if known:
        return known[1]
    if 0x400 <= command_status <= 0x4FF:
        return f"The carrier gave its own code 0x{command_status:03X}; its documentation says what that means."
    return f"The carrier gave the code 0x{command_status:08X}, which SMPP 3.4 does not define."
