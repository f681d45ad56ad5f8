// The list of calls, grouped by day, with missed calls marked.

import { dayWords, historyWords, kindOfCall, timeWords } from '../words.js';
import { byId, element, icon, paintAvatar } from './dom.js';

export class HistoryView {
  #on;

  /** `on` has call(name, type) and more(). */
  constructor(on) {
    this.#on = on;
    byId('history-more').addEventListener('click', on.more);
  }

  render({ rows, complete }, me) {
    const focused = document.activeElement?.closest('[data-call-id]')?.dataset.callId;
    const content = [];
    let day = null;
    let list = null;
    for (const row of rows) {
      if (dayWords(row.createdAt) !== day) {
        day = dayWords(row.createdAt);
        list = element('ul', { className: 'calls' });
        content.push(element('h3', { text: day }), list);
      }
      list.append(this.#row(row, me));
    }
    byId('history').replaceChildren(...content);
    byId('history-empty').hidden = rows.length > 0;
    byId('history-more').hidden = complete;
    if (focused)
      byId('history')
        .querySelector(`[data-call-id="${CSS.escape(focused)}"] button`)
        ?.focus();
  }

  /** Marks online users; `of` returns a user's status. */
  presence(of) {
    for (const avatar of byId('history').querySelectorAll('.avatar')) {
      avatar.dataset.status = of(avatar.dataset.user) ?? 'unknown';
    }
  }

  #row(row, me) {
    const { other, outgoing, missed, outcome } = historyWords(row, me);
    const avatar = element('span', { className: 'avatar small', 'data-user': other, 'aria-hidden': 'true' });
    paintAvatar(avatar, other);
    const back = element(
      'button',
      { type: 'button', className: 'icon-button' },
      icon(row.callType === 'video' ? 'video' : 'phone'),
    );
    back.setAttribute('aria-label', `${kindOfCall(row.callType)} with ${other}`);
    back.title = missed ? 'Call back' : 'Call again';
    back.addEventListener('click', () => this.#on.call(other, row.callType));
    return element(
      'li',
      {
        'data-call-id': row.id,
        'data-direction': outgoing ? 'outgoing' : 'incoming',
        'data-missed': missed,
        'data-status': row.status,
      },
      avatar,
      element(
        'div',
        { className: 'call-text' },
        element('p', { className: 'call-name', text: other }),
        element(
          'p',
          { className: 'call-outcome' },
          icon(missed ? 'missed' : outgoing ? 'outgoing' : 'incoming'),
          element('span', { className: 'visually-hidden', text: outgoing ? 'Outgoing, ' : 'Incoming, ' }),
          element('span', { text: outcome }),
          element('span', { className: 'call-kind', text: kindOfCall(row.callType) }),
        ),
      ),
      element('time', { datetime: new Date(row.createdAt).toISOString(), text: timeWords(row.createdAt) }),
      back,
    );
  }
}
