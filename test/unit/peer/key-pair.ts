/** An SSH key pair for tests. Those of ssh2 1.17 cannot be read back now and then (7 of 3000); swam itself has ssh-keygen make them. */
import ssh2 from 'ssh2'

const TRIES = 20

/** @throws the last one's fault if none can be read */
export function keyPair(): { readonly private: string; readonly public: string } {
  for (let tries = 1; ; tries++) {
    const keys = ssh2.utils.generateKeyPairSync('ed25519')
    const read = ssh2.utils.parseKey(keys.private)
    if (!(read instanceof Error)) return keys
    if (tries === TRIES) throw read
  }
}
