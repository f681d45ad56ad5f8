// TypeScript diagnostics of a piece of source.

import typescript from 'typescript';
import { path } from './deployment.mjs';

/** The compiler's diagnostics, as texts. Packages are resolved from tests/. */
export function complaintsOf(source) {
  const name = path('tests/deploy/unwritten.ts');
  const options = { strict: true, noEmit: true, skipLibCheck: true, types: [], module: typescript.ModuleKind.ESNext, moduleResolution: typescript.ModuleResolutionKind.Bundler };
  const host = typescript.createCompilerHost(options);
  const { getSourceFile } = host;
  host.getSourceFile = (file, ...rest) => (file === name ? typescript.createSourceFile(file, source, ...rest) : getSourceFile(file, ...rest));
  const program = typescript.createProgram([name], options, host);
  return typescript.getPreEmitDiagnostics(program).map(({ messageText }) => typescript.flattenDiagnosticMessageText(messageText, '\n'));
}
