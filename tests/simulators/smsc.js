// An SMSC by npm `smpp`: a foreign implementation that accepts a bind, answers submits and sends receipts.
const smpp = require('smpp');
let number = 0;
const server = smpp.createServer((session) => {
  session.on('error', () => {});
  session.on('bind_transceiver', (pdu) => session.send(pdu.response({ system_id: 'node-smpp' })));
  session.on('enquire_link', (pdu) => session.send(pdu.response()));
  session.on('unbind', (pdu) => { session.send(pdu.response()); session.close(); });
  session.on('submit_sm', (pdu) => {
    const id = (++number).toString(16).padStart(8, '0');
    session.send(pdu.response({ message_id: id }));
    setTimeout(() => session.deliver_sm({
      source_addr: pdu.destination_addr, destination_addr: pdu.source_addr, esm_class: 4,
      short_message: `id:${id} sub:001 dlvrd:001 submit date:2611241200 done date:2611241201 stat:DELIVRD err:000 text:`,
    }), 20);
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
