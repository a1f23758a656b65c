/* Stands in for NVIDIA's driver (libcuda.so.1 and libnvcuvid.so.1 in one file), in memory of the processor, for H.264 of 8 bits in 4:2:0.

FFmpeg's own NVDEC code runs on it: headers, references, order, cropping and copies are real. A picture is no decoded one: its luma is one
value, 16 plus the sum of the bytes of its slices modulo 200; its chroma is 90 and 170. Names and layouts: nv-codec-headers 13 (FFmpeg).
VL2_NO_GPU=1 makes it a driver on a machine without a card. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NOTHING(name) \
    int name(void) { return 0; }
#define EACH(do) \
    do(cuDeviceGetName) do(cuDeviceComputeCapability) do(cuCtxSetLimit) do(cuCtxPushCurrent_v2) do(cuCtxDestroy_v2) \
    do(cuMemAllocPitch_v2) do(cuMemAllocManaged) do(cuMemsetD8Async) do(cuMemcpy) do(cuMemcpyAsync) do(cuMemcpyHtoD_v2) \
    do(cuMemcpyHtoDAsync_v2) do(cuMemcpyDtoH_v2) do(cuMemcpyDtoHAsync_v2) do(cuMemcpyDtoD_v2) do(cuMemcpyDtoDAsync_v2) do(cuGetErrorName) \
    do(cuGetErrorString) do(cuDevicePrimaryCtxRelease) do(cuDevicePrimaryCtxSetFlags) do(cuDevicePrimaryCtxReset) do(cuStreamCreate) \
    do(cuStreamQuery) do(cuStreamSynchronize) do(cuStreamDestroy_v2) do(cuStreamAddCallback) do(cuStreamWaitEvent) do(cuEventCreate) \
    do(cuEventDestroy_v2) do(cuEventSynchronize) do(cuEventQuery) do(cuEventRecord) do(cuLaunchKernel) do(cuLinkCreate) do(cuLinkAddData) \
    do(cuLinkComplete) do(cuLinkDestroy) do(cuModuleLoadData) do(cuModuleUnload) do(cuModuleGetFunction) do(cuModuleGetGlobal) \
    do(cuTexObjectCreate) do(cuTexObjectDestroy) do(cuGLGetDevices_v2) do(cuGraphicsGLRegisterImage) do(cuGraphicsUnregisterResource) \
    do(cuGraphicsMapResources) do(cuGraphicsUnmapResources) do(cuGraphicsSubResourceGetMappedArray) \
    do(cuGraphicsResourceGetMappedPointer_v2) do(cuArrayCreate_v2) do(cuArray3DCreate_v2) do(cuArrayDestroy) do(cuvidGetDecodeStatus) \
    do(cuvidReconfigureDecoder) do(cuvidCtxLockCreate) do(cuvidCtxLockDestroy) do(cuvidCtxLock) do(cuvidCtxUnlock) \
    do(cuvidCreateVideoSource) do(cuvidCreateVideoSourceW) do(cuvidDestroyVideoSource) do(cuvidSetVideoSourceState) \
    do(cuvidGetVideoSourceState) do(cuvidGetSourceVideoFormat) do(cuvidGetSourceAudioFormat) do(cuvidCreateVideoParser) \
    do(cuvidParseVideoData) do(cuvidDestroyVideoParser)
EACH(NOTHING)

/* --- libcuda ----------------------------------------------------------------------------------------------------------- */

static int card;

int cuInit(unsigned flags) { return getenv("VL2_NO_GPU") ? 100 : 0; } /* CUDA_ERROR_NO_DEVICE */
int cuDriverGetVersion(int *version) { return *version = 13010, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0, ordinal ? 101 : 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { return *value = 256, 0; } /* how lines of textures are aligned */
int cuCtxCreate_v2(void **context, unsigned flags, int device) { return *context = &card, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &card, 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 4, *active = 1, 0; }
int cuCtxGetCurrent(void **context) { return *context = &card, 0; }
int cuCtxPopCurrent_v2(void **context) { return *context = &card, 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuMemAlloc_v2(uint64_t *at, size_t bytes) { return *at = (uint64_t)malloc(bytes), 0; }
int cuMemFree_v2(uint64_t at) { return free((void *)at), 0; }

struct side {
    size_t x, y;
    int kind; /* 1 host, 2 device */
    char *host, *device;
    void *array;
    size_t pitch;
};

struct copy {
    struct side from, to;
    size_t width, height;
};

int cuMemcpy2DAsync_v2(const struct copy *copy, void *stream)
{
    for (size_t row = 0; row < copy->height; row++) {
        const struct side *from = &copy->from, *to = &copy->to;
        memcpy((to->kind == 1 ? to->host : to->device) + (to->y + row) * to->pitch + to->x,
               (from->kind == 1 ? from->host : from->device) + (from->y + row) * from->pitch + from->x, copy->width);
    }
    return 0;
}

int cuMemcpy2D_v2(const struct copy *copy) { return cuMemcpy2DAsync_v2(copy, 0); }

/* --- libnvcuvid ---------------------------------------------------------------------------------------------------------- */

enum { H264 = 4, CHROMA_420 = 1 };

struct caps {
    int codec, chroma;
    unsigned more_bits, unused[3];
    unsigned char supported, engines;
    unsigned short formats;
    unsigned max_width, max_height, max_blocks;
    unsigned short min_width, min_height;
};

int cuvidGetDecoderCaps(struct caps *caps)
{
    caps->supported = caps->codec == H264 && caps->chroma == CHROMA_420 && !caps->more_bits;
    caps->engines = caps->formats = 1;
    caps->max_width = caps->max_height = 4096;
    caps->max_blocks = 65536;
    caps->min_width = caps->min_height = 16;
    return 0;
}

struct wish { /* CUVIDDECODECREATEINFO, as far as it is read */
    unsigned long width, height, surfaces;
};

struct decoder {
    unsigned long width, height;
    unsigned char luma[64];
};

int cuvidCreateDecoder(struct decoder **made, const struct wish *wish)
{
    if (wish->surfaces > sizeof (*made)->luma)
        return 1;
    *made = calloc(1, sizeof **made);
    (*made)->width = wish->width;
    (*made)->height = wish->height;
    return 0;
}

int cuvidDestroyDecoder(struct decoder *decoder) { return free(decoder), 0; }

struct picture { /* CUVIDPICPARAMS, as far as it is read */
    int blocks_wide, blocks_high, surface, field, bottom, second;
    unsigned bytes;
    const unsigned char *data;
};

int cuvidDecodePicture(struct decoder *decoder, const struct picture *picture)
{
    unsigned sum = 0;
    for (unsigned place = 0; place < picture->bytes; place++)
        sum += picture->data[place];
    decoder->luma[picture->surface] = 16 + sum % 200;
    return 0;
}

int cuvidMapVideoFrame64(struct decoder *decoder, int surface, uint64_t *at, unsigned *pitch, const void *how)
{
    size_t line = (decoder->width + 255) / 256 * 256;
    unsigned char *made = malloc(line * decoder->height * 3 / 2), *chroma = made + line * decoder->height;
    memset(made, decoder->luma[surface], line * decoder->height);
    for (size_t place = 0; place < line * decoder->height / 2; place++)
        chroma[place] = place % 2 ? 170 : 90;
    *at = (uint64_t)made;
    *pitch = line;
    return 0;
}

int cuvidUnmapVideoFrame64(struct decoder *decoder, uint64_t at) { return free((void *)at), 0; }
