// Two soft notes, repeated while it rings. Silent if the browser blocks sound before a click.

const INCOMING = { notes: [523.25, 659.25], gain: 0.12, everyMs: 2_400 };
const OUTGOING = { notes: [392], gain: 0.05, everyMs: 3_200 };
const NOTE_S = 0.7;

let playing = null;

/** Rings for 'incoming' or 'outgoing'; null stops. Idempotent. */
export function ring(direction) {
  if (playing?.direction === direction) return;
  stop();
  if (direction === null) return;
  const { notes, gain, everyMs } = direction === 'incoming' ? INCOMING : OUTGOING;
  try {
    const context = new AudioContext();
    const chime = () => {
      // A context that waits for a click would play all missed chimes at once.
      if (context.state === 'running') notes.forEach((pitch, index) => strike(context, pitch, gain, index * 0.22));
    };
    context.resume().then(chime, () => {});
    playing = { direction, context, timer: setInterval(chime, everyMs) };
  } catch {
    playing = null;
  }
}

function stop() {
  if (!playing) return;
  clearInterval(playing.timer);
  playing.context.close().catch(() => {});
  playing = null;
}

function strike(context, pitch, gain, delay) {
  const start = context.currentTime + delay;
  const note = new OscillatorNode(context, { type: 'sine', frequency: pitch });
  const volume = new GainNode(context, { gain: 0 });
  volume.gain.setValueAtTime(0, start);
  volume.gain.linearRampToValueAtTime(gain, start + 0.03);
  volume.gain.exponentialRampToValueAtTime(0.0001, start + NOTE_S);
  note.connect(volume).connect(context.destination);
  note.start(start);
  note.stop(start + NOTE_S);
}
