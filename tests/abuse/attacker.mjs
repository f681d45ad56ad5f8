// One attack in a process of its own: `node attacker.mjs NAME PORT`. Ends on SIGTERM, and prints its counts.

import { begin } from '../support/attacks.mjs';

const [name, port] = process.argv.slice(2);
const attack = begin(name, Number(port));
process.once('SIGTERM', async () => {
  console.log(JSON.stringify(await attack.stop()));
  process.exit(0);
});
