/** ssh2's ciphers: without its addon they are JavaScript, ten times slower. */
import { sshCrypto } from '../../lib/peer/ssh.ts'
import type { Finding } from './finding.ts'

export async function checkCrypto(): Promise<Finding[]> {
  if (sshCrypto() === 'native') return []
  return [
    {
      id: 'crypto-slow',
      level: 'warning',
      what: "ssh2's native crypto does not load: its ciphers run as JavaScript",
      why: 'a migration is as slow as these are: some 30 MB/s instead of 400, and with it the whole daemon',
      mend: 'apt-get install -y --reinstall swam && systemctl restart swamd',
    },
  ]
}
