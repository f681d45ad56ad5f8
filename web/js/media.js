// Microphone, camera and screen.

const MICROPHONE = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, facingMode: 'user' };

/** Browsers grant devices to secure pages only: https, or http on localhost. */
export class InsecurePage extends Error {
  name = 'InsecurePage';
}

/**
 * Opens the microphone and, for a video call, the camera: { audio, video, problem }.
 * Without a camera the call continues: then `video` is null and `problem` has the reason.
 */
export async function openDevices({ video }) {
  if (!video) return { ...tracksOf(await open({ audio: MICROPHONE })), problem: null };
  try {
    return { ...tracksOf(await open({ audio: MICROPHONE, video: CAMERA })), problem: null };
  } catch (error) {
    // The user refused: asking for less would be a second prompt.
    if (error instanceof InsecurePage || error.name === 'NotAllowedError') throw error;
    const withoutCamera = tracksOf(await open({ audio: MICROPHONE }));
    return { ...withoutCamera, problem: error };
  }
}

export async function openCamera() {
  return tracksOf(await open({ video: CAMERA })).video;
}

export function canShareScreen() {
  return Boolean(navigator.mediaDevices?.getDisplayMedia);
}

/** The shared screen's track, or null if the person changed their mind. */
export async function openScreen() {
  try {
    const { video } = tracksOf(await navigator.mediaDevices.getDisplayMedia({ video: true }));
    if (video) video.contentHint = 'detail';
    return video;
  } catch (error) {
    if (error.name === 'NotAllowedError') return null;
    throw error;
  }
}

async function open(constraints) {
  if (!navigator.mediaDevices) throw new InsecurePage();
  return navigator.mediaDevices.getUserMedia(constraints);
}

function tracksOf(stream) {
  return { audio: stream.getAudioTracks()[0] ?? null, video: stream.getVideoTracks()[0] ?? null };
}
