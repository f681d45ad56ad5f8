// The views outside a call: signing in, dialling, the last call, and messages.

import { nameProblem } from '../identity.js';
import { connectionWords, endWords, presenceWords } from '../words.js';
import { byId, focusIsLost, paintAvatar, setIcon, setText } from './dom.js';

export class HomeView {
  #on;

  /** `on` has join(name), leave(), peer(name), dial(name, type), again(), dismiss(). */
  constructor(on) {
    this.#on = on;
    byId('join-form').addEventListener('submit', (event) => {
      event.preventDefault();
      const name = byId('name').value.trim();
      if (this.#valid(byId('name'), byId('name-problem'), nameProblem(name))) on.join(name);
    });
    byId('call-form').addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.#valid(byId('peer'), byId('peer-problem'), nameProblem(this.peer))) {
        on.dial(this.peer, event.submitter?.value ?? 'video');
      }
    });
    byId('peer').addEventListener('input', () => this.#peerChanged());
    byId('leave').addEventListener('click', () => on.leave());
    byId('call-again').addEventListener('click', on.again);
    byId('ended-close').addEventListener('click', on.dismiss);
    byId('notice-close').addEventListener('click', () => this.notice(null));
  }

  get peer() {
    return byId('peer').value.trim();
  }

  set peer(name) {
    byId('peer').value = name;
    this.#peerChanged();
  }

  showJoin(suggestion, problem = null) {
    document.body.dataset.view = 'join';
    byId('name').value = suggestion;
    this.#show({ join: true });
    this.#valid(byId('name'), byId('name-problem'), problem);
    byId('name').focus();
    byId('name').select();
  }

  showHome(me) {
    document.body.dataset.view = 'home';
    setText(byId('me-name'), me);
    this.#show({ join: false });
    // A second user, to try it alone.
    const second = me === 'bob' ? 'alice' : 'bob';
    setText(byId('try-name'), second);
    byId('try-link').href = `/?${new URLSearchParams({ me: second, peer: me })}`;
  }

  connection(status) {
    byId('connection').dataset.state = status;
    setText(byId('connection'), connectionWords(status));
    for (const button of byId('call-form').querySelectorAll('button')) button.disabled = status !== 'connected';
    byId('call-again').disabled = status !== 'connected';
  }

  presence(status) {
    byId('peer-presence').dataset.status = status ?? 'unknown';
    setText(byId('peer-presence'), presenceWords(this.peer, status));
  }

  /** The card of an ended call; null removes it. */
  ended(call) {
    const card = byId('ended');
    const appears = card.hidden && call !== null;
    card.hidden = call === null;
    if (!call) return;
    const { title, detail, missed } = endWords(call);
    card.dataset.reason = call.ended.reason;
    card.dataset.missed = missed;
    setIcon(card, missed ? 'missed' : 'hangup');
    setText(byId('ended-title'), title);
    setText(byId('ended-detail'), detail);
    setText(byId('call-again'), call.direction === 'incoming' ? 'Call back' : 'Call again');
    if (appears && focusIsLost()) byId('ended-title').focus();
  }

  /** A message across the top; null removes it. */
  notice(text) {
    byId('notice').hidden = text === null;
    setText(byId('notice-text'), text ?? '');
  }

  #show({ join }) {
    byId('join').hidden = !join;
    byId('home').hidden = join;
    byId('me').hidden = join;
    byId('connection').hidden = join;
  }

  #peerChanged() {
    this.#valid(byId('peer'), byId('peer-problem'), null);
    paintAvatar(byId('peer-avatar'), this.peer);
    this.#on.peer(this.peer);
  }

  #valid(input, message, problem) {
    setText(message, problem ?? '');
    input.setAttribute('aria-invalid', problem !== null);
    if (problem !== null) input.focus();
    return problem === null;
  }
}
