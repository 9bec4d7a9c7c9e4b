/** A process with a watchdog, for watchdog.test.ts: `DIRECTORY STALL_MS [NOTIFY_SOCKET]`; says its companion's pid, obeys words on stdin. */
import { Watchdog } from '../../../lib/host/watchdog.ts'

const [directory = '', stallMs, notifySocket] = process.argv.slice(2)
const watchdog = new Watchdog({
  directory,
  stallMs: Number(stallMs),
  notifySocket,
  onProblem: (text) => process.stdout.write(`problem ${text}\n`),
})
process.stdout.write(`companion ${watchdog.companion}\n`)
process.stdin.on('data', (bytes) => {
  const word = bytes.toString().trim()
  if (word === 'close') watchdog.close()
  if (word === 'companion') process.stdout.write(`companion ${watchdog.companion}\n`)
  // A loop that gives way to nothing.
  if (word === 'hang') for (;;);
})
