/** The values of all codes of the 8-bit floats (OCP 8-bit Floating Point Specification 1.0, table 1). */

function valuesOf(exponentBits: number, hasInfinity: boolean): Float32Array {
  const mantissaBits = 7 - exponentBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  const highest = 2 ** exponentBits - 1;
  return Float32Array.from({ length: 256 }, (_, code) => {
    const sign = code >= 128 ? -1 : 1;
    const exponent = (code >> mantissaBits) & highest;
    const mantissa = code & (2 ** mantissaBits - 1);
    if (hasInfinity && exponent === highest) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
    if (!hasInfinity && (code & 127) === 127) return Number.NaN;
    const fraction = mantissa / 2 ** mantissaBits;
    return sign * (exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias));
  });
}

/** The value of each code, by safetensors' name of the type. */
export const FLOAT8 = {
  F8_E4M3: valuesOf(4, false),
  F8_E5M2: valuesOf(5, true),
} as const;

export type Float8 = keyof typeof FLOAT8;
