// The views of a call: the two ringing dialogs and the stage.

import { canShareScreen } from '../media.js';
import { clock, kindOfCall, ringingWords, troubleWords } from '../words.js';
import { byId, paintAvatar, play, setIcon, setText } from './dom.js';

export class CallView {
  #call = null;
  #connection = 'connecting';
  #timer;

  /** `on` has accept({video}), decline(), hangUp(), mute(on), camera(on), screen(on), soundBlocked(). */
  constructor(on) {
    byId('accept').addEventListener('click', () => on.accept({ video: this.#call?.type === 'video' }));
    byId('accept-audio').addEventListener('click', () => on.accept({ video: false }));
    byId('decline').addEventListener('click', on.decline);
    byId('cancel').addEventListener('click', on.hangUp);
    byId('hang-up').addEventListener('click', on.hangUp);
    byId('mute').addEventListener('click', () => on.mute(!this.#call.muted));
    byId('camera').addEventListener('click', () => on.camera(!this.#call.cameraOn));
    byId('screen').addEventListener('click', () => on.screen(!this.#call.sharingScreen));
    byId('screen').hidden = !canShareScreen();
    // Escape closes a dialog. `close` also fires after render() has closed it, when the call no longer rings.
    byId('incoming').addEventListener('close', ({ target }) => {
      if (!target.open && this.#call?.phase === 'incoming') on.decline();
    });
    byId('outgoing').addEventListener('close', ({ target }) => {
      if (!target.open && isRingingOut(this.#call)) on.hangUp();
    });
    byId('remote-audio').addEventListener('canplay', (event) => event.target.play().catch(() => on.soundBlocked()));
  }

  connection(status) {
    this.#connection = status;
    if (this.#call) this.render(this.#call);
  }

  /** Shows a call; null if there is none. */
  render(call) {
    const live = call && !call.over ? call : null;
    this.#call = live;
    const onStage = live !== null && (live.phase === 'active' || live.phase === 'joining');
    document.body.dataset.call = call?.phase ?? 'idle';

    const appears = onStage && byId('stage').hidden;
    byId('stage').hidden = !onStage;
    if (onStage) this.#stage(live);
    this.#remote(onStage ? live : null);
    this.#self(live, onStage);
    this.#dialog(byId('outgoing'), isRingingOut(live), () => this.#outgoing(live));
    this.#dialog(byId('incoming'), live?.phase === 'incoming', () => this.#incoming(live));
    this.#runTimer(live?.startedAt ?? null);
    if (appears) byId('stage-name').focus();
  }

  /** Shows a problem in the open dialog, which covers the page. False if none is open. */
  problem(text) {
    const open = ['incoming', 'outgoing'].find((id) => byId(id).open);
    if (open) setText(byId(`${open}-problem`), text);
    return open !== undefined;
  }

  #dialog(dialog, wanted, fill) {
    if (wanted) fill();
    if (wanted && !dialog.open) {
      setText(byId(`${dialog.id}-problem`), '');
      dialog.showModal();
    }
    if (!wanted && dialog.open) dialog.close();
  }

  #outgoing(call) {
    paintAvatar(byId('outgoing-avatar'), call.otherName);
    setText(byId('outgoing-title'), call.otherName);
    setText(byId('outgoing-words'), ringingWords(call));
  }

  #incoming(call) {
    paintAvatar(byId('incoming-avatar'), call.otherName);
    setText(byId('incoming-title'), `${call.otherName} is calling`);
    const alias = call.otherName === call.other ? '' : ` from ${call.other}`;
    setText(byId('incoming-words'), kindOfCall(call.type) + alias);
    byId('accept-audio').hidden = call.type !== 'video';
    setIcon(byId('accept'), call.type === 'video' ? 'video' : 'phone');
  }

  #stage(call) {
    paintAvatar(byId('stage-avatar'), call.otherName);
    setText(byId('stage-name'), call.otherName);
    setText(byId('trouble'), call.phase === 'joining' ? 'Connecting…' : troubleWords(call, this.#connection));
    this.#control('mute', call.muted, call.muted ? 'mic-off' : 'mic', call.muted ? 'Unmute' : 'Mute');
    this.#control(
      'camera',
      !call.cameraOn,
      call.cameraOn ? 'video' : 'video-off',
      call.cameraOn ? 'Stop video' : 'Start video',
    );
    this.#control('screen', call.sharingScreen, 'screen', call.sharingScreen ? 'Stop sharing' : 'Share screen');
    byId('stage').dataset.media = call.mediaState;
  }

  #control(id, lit, icon, label) {
    const button = byId(id);
    button.dataset.lit = lit;
    setIcon(button, icon);
    setText(button.querySelector('.control-label'), label);
  }

  #remote(call) {
    // Separate elements for sound and picture: a video element without frames would delay the sound.
    play(byId('remote-audio'), call?.remoteAudio ?? null);
    const seen = play(byId('remote-video'), call?.remoteVideo ?? null);
    byId('remote-video').hidden = !seen;
    byId('faceless').hidden = seen;
  }

  #self(call, onStage) {
    const track = call?.localVideo ?? null;
    byId('self-video').hidden = !play(byId('self-video'), onStage ? track : null);
    byId('preview-video').hidden = !play(byId('preview-video'), isRingingOut(call) ? track : null);
    // Mirror the own camera, but not a shared screen, which must stay readable.
    byId('self-video').classList.toggle('mirrored', call?.sharingScreen === false);
  }

  #runTimer(startedAt) {
    clearInterval(this.#timer);
    if (startedAt === null) {
      setText(byId('timer'), '');
      return;
    }
    const show = () => setText(byId('timer'), clock(Math.max(0, Math.floor((Date.now() - startedAt) / 1000))));
    show();
    this.#timer = setInterval(show, 1000);
  }
}

function isRingingOut(call) {
  return call?.phase === 'preparing' || call?.phase === 'outgoing';
}
