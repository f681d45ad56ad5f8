// Helpers of all views.

export const byId = (id) => document.getElementById(id);

/** Writes only differences: live regions are read out once, and nothing is rendered again needlessly. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function element(name, { text, className, ...attributes } = {}, ...children) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  svg.append(document.createElementNS('http://www.w3.org/2000/svg', 'use'));
  setIcon(svg, name);
  return svg;
}

export function setIcon(parent, name) {
  const use = parent.querySelector('use');
  if (use.getAttribute('href') !== `#icon-${name}`) use.setAttribute('href', `#icon-${name}`);
}

/** A user's initial on a colour derived from the name. */
export function paintAvatar(avatar, name) {
  setText(avatar, [...name][0]?.toUpperCase() ?? '');
  let hash = 0;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 360;
  avatar.style.setProperty('--hue', hash);
  avatar.toggleAttribute('data-empty', name === '');
}

/** Plays this track in a media element; null stops. True if there is something to play. */
export function play(media, track) {
  if (media.srcObject?.getTracks()[0] !== (track ?? undefined)) {
    media.srcObject = track ? new MediaStream([track]) : null;
  }
  return track !== null;
}

/** Whether the focus is on no visible element, because the focused one was removed. */
export function focusIsLost() {
  const { activeElement } = document;
  return activeElement === null || activeElement === document.body || activeElement.getClientRects().length === 0;
}
